"""Verifiers that compare text or a number with the answer."""

from __future__ import annotations

import re

from vla.rewards.sample import UNSCORABLE, Sample, fact_texts
from vla.rewards.verifiers.numbers import (
    final_answer_text,
    find_answer_number,
    normalize_number_text,
    parse_number,
)


def exact(sample: Sample) -> float:
    """1 when the completion, or what it gives as its answer (`numbers.final`), is the answer, but
    for letter case, white space, and what Markdown and LaTeX only use to set it.
    """
    said, right = final_answer_text(sample.completion), _words_of(sample.answer)
    if said is sample.completion:
        return float(_words_of(said) == right)
    return float(
        right in (_words_of(said), _words_of(said.rstrip(" .*")), _words_of(sample.completion))
    )


def _words_of(text: str) -> str:
    text = re.sub(r"_\{(\w+)\}", r"_\1", normalize_number_text(text.strip(" \t\r\n*$")))
    return " ".join(text.split()).casefold()


def contains(sample: Sample) -> float:
    """1 when every word of `facts["words"]` (the answer, when there are none) occurs as a whole
    word, whatever the case.
    """
    words = fact_texts(sample, "words")
    return float(all(_occurs(word, sample.completion) for word in words))


def _occurs(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def last_number(sample: Sample) -> float:
    """1 when the number that the completion gives (`numbers.find_answer_number`) equals the answer's;
    words around are ignored. Unscorable when the answer holds no number.
    """
    expected = find_answer_number(sample.answer)
    if expected is None:
        return UNSCORABLE
    return float(find_answer_number(sample.completion) == expected)


def only_number(sample: Sample) -> float:
    """1 when the completion is the answer's number and nothing else."""
    expected = find_answer_number(sample.answer)
    if expected is None:
        return UNSCORABLE
    return float(parse_number(sample.completion) == expected)
