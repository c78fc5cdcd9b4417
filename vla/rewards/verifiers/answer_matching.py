"""Verifiers that compare text or a number with the answer: exact, contains, last number."""

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
    """1 when the completion or its final answer (`numbers.final_answer_text`) equals the answer.

    Letter case, white space, and the markup of Markdown and LaTeX do not count.
    """
    final = final_answer_text(sample.completion)
    right = _normalize(sample.answer)
    if final is sample.completion:
        return float(_normalize(final) == right)
    texts = (final, final.rstrip(" .*"), sample.completion)
    return float(right in map(_normalize, texts))


def _normalize(text: str) -> str:
    text = re.sub(r"_\{(\w+)\}", r"_\1", normalize_number_text(text.strip(" \t\r\n*$")))
    return " ".join(text.split()).casefold()


def contains(sample: Sample) -> float:
    """1 when every word of `facts["words"]` (default: the answer) occurs as a whole word, in any
    case."""
    words = fact_texts(sample, "words")
    return float(all(_contains_word(word, sample.completion) for word in words))


def _contains_word(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def last_number(sample: Sample) -> float:
    """1 when the number of the completion (`numbers.find_answer_number`) equals that of the answer.

    Unscorable when the answer holds no number.
    """
    expected = find_answer_number(sample.answer)
    if expected is None:
        return UNSCORABLE
    return float(find_answer_number(sample.completion) == expected)


def only_number(sample: Sample) -> float:
    """1 when the completion is the number of the answer and nothing else."""
    expected = find_answer_number(sample.answer)
    if expected is None:
        return UNSCORABLE
    return float(parse_number(sample.completion) == expected)
