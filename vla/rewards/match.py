"""Verifiers that compare text or a number with the answer, in time linear in the length of the completion."""

from __future__ import annotations

import re

from vla.rewards.sample import UNSCORABLE, Sample

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def exact(sample: Sample) -> float:
    """1 when completion and answer are equal but for white space around and letter case."""
    return float(sample.completion.strip().casefold() == sample.answer.strip().casefold())


def contains(sample: Sample) -> float:
    """1 when every word of `facts["words"]` (the answer, when there are none) occurs as a whole word, whatever the
    case.
    """
    words = sample.facts.get("words") or [sample.answer]
    return float(all(_occurs(word, sample.completion) for word in words))


def _occurs(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def last_number(sample: Sample) -> float:
    """1 when the last number in the completion is the answer; thousands separators are read, words around are ignored.

    Unscorable when the answer holds no number.
    """
    expected = read_number(sample.answer)
    if expected is None:
        return UNSCORABLE
    return float(read_number(sample.completion) == expected)


def only_number(sample: Sample) -> float:
    """1 when the completion is the answer's number and nothing else."""
    expected = read_number(sample.answer)
    if expected is None:
        return UNSCORABLE
    match = NUMBER.fullmatch(sample.completion.strip())
    return float(match is not None and read_number(sample.completion) == expected)


def read_number(text: str) -> float | None:
    """The last number in a text. A minus that follows a digit or a letter (12-7, x-7) is no sign."""
    found = list(NUMBER.finditer(text))
    if not found:
        return None
    last = found[-1]
    digits = last.group().replace(",", "")
    if digits[0] in "+-" and last.start() > 0 and text[last.start() - 1].isalnum():
        digits = digits[1:]
    return float(digits)
