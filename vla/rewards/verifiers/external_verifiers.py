"""Verifiers that ask a library: equal mathematical expressions (math-verify), answers of
reasoning-gym."""

from __future__ import annotations

import re
from typing import Any

from vla.rewards.sample import UNSCORABLE, Sample
from vla.rewards.verifiers.numbers import (
    final_answer_text,
    find_last_number,
    normalize_number_text,
    parse_number,
)

MAX_CHARACTERS, MAX_BRACKETS = 500, 50
"""Of an expression; the library takes minutes over thousands of brackets."""
_FUNCTIONS = "sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|pi|infty|inf|arcsin|arccos|arctan|sinh|cosh|tanh|max|min|abs|theta"
_PIECE = (
    rf"\d++(?:\.\d++)?+|\.\d++|(?<![a-zA-Z])(?:{_FUNCTIONS})(?![a-zA-Z])|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])"
    r"|[-+*/^=<>()\[\]{}|,!_:;\u2264\u2265\u2260]"
)
_EXPRESSION = re.compile(rf"(?:(?:{_PIECE})\s*+)++")
_OPERATOR = re.compile(r"[+*/^=<>!(\[\\|,]|-|\b(?:sqrt|pi|infty)\b|^\d+[a-zA-Z]$")
_SPAN = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_TOO_LARGE = re.compile(r"\d[\s)}]*\^[\s{(]*\d+[\s)}]*\^|\^[\s{(]*-?\d{5,}|\d{4,}[\s)}]*!|!\s*!")
_LATEX = (
    ("\u03c0", r"\pi "),
    ("\u221e", r"\infty "),
    ("\u00d7", r"\cdot "),
    ("\u00b7", r"\cdot "),
    ("\u00f7", "/"),
    ("\u2264", r"\le "),
    ("\u2265", r"\ge "),
    ("\u2260", r"\ne "),
    ("\u03b8", r"\theta "),
)


def is_expression(text: str) -> bool:
    """Whether a text is LaTeX or reads as an expression: single letters, numbers, names of
    functions, an operator."""
    text = to_latex(text)
    if re.search(r"\\[a-zA-Z{]|^\$.+\$$", text):
        return True
    score = re.fullmatch(r"\d+\s*[-:]\s*\d+", text)  # 3-2, 10:30: as it is written, and no sum
    return (
        score is None
        and _EXPRESSION.fullmatch(text) is not None
        and _OPERATOR.search(text) is not None
    )


def to_latex(text: str) -> str:
    """Signs and roots of Unicode and names of functions as LaTeX writes them."""
    text = normalize_number_text(text).strip()
    text = re.sub(
        r"\u221a\s*(?:\(([^()]*)\)|(\w+))", lambda found: rf"\sqrt{{{found[1] or found[2]}}}", text
    )
    for sign, command in _LATEX:
        text = text.replace(sign, command)
    text = re.sub(r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    return re.sub(rf"(?<![a-zA-Z\\])({_FUNCTIONS})(?![a-zA-Z])", r"\\\1", text)


def find_final_expression(text: str) -> str | None:
    """The expression that a text ends on: what it gives as its answer, the last in dollars or
    brackets of LaTeX, else the longest run of pieces of an expression at the end of its last line.
    """
    said = final_answer_text(text)
    spans = [next(filter(None, found.groups())) for found in _SPAN.finditer(said)]
    if spans:
        return spans[-1]
    bare = to_latex(said)
    if said is not text and is_expression(bare):
        return bare
    line = next((line for line in reversed(bare.splitlines()) if line.strip()), "").rstrip(" .")
    if "\\" in line:
        return re.split(r"(?<![a-zA-Z\\])[a-zA-Z]{2,}(?![a-zA-Z}])[:,]?\s", line)[-1]
    ends = [found for found in _EXPRESSION.finditer(line) if found.end() == len(line)]
    return ends[-1][0] if ends else None


def is_too_large(text: str) -> bool:
    """Whether an expression is none that the library should compute."""
    brackets = sum(map(text.count, "([{"))
    return (
        len(text) > MAX_CHARACTERS
        or brackets > MAX_BRACKETS
        or _TOO_LARGE.search(normalize_number_text(text)) is not None
    )


def math_equal(sample: Sample) -> float:
    """1 when the completion's final expression equals the answer's mathematically (1/2 and 0.5, 2x
    and x + x).

    Unscorable when the answer itself cannot be read. Towers of powers, other numbers that would not
    fit into memory and what is as long or as nested as no answer is are not computed and equal
    nothing. The library's own time limits use signals, which work in the main thread only; the time
    limit here is that of the process (`pool.py`), so they are off.
    """
    from math_verify import parse, verify

    if is_too_large(sample.answer):
        return UNSCORABLE
    answer = parse(f"${to_latex(sample.answer).strip('$')}$", parsing_timeout=None)
    if not answer:
        return UNSCORABLE
    said = find_final_expression(sample.completion)
    text = sample.completion[-MAX_CHARACTERS:] if said is None else said
    if is_too_large(text):
        return 0.0
    asked = text if said is None else f"${to_latex(said).strip('$')}$"
    completion = parse(asked, parsing_timeout=None)
    return float(verify(answer, completion, timeout_seconds=None))


def reasoning_gym_score(sample: Sample) -> float:
    """The score that the problem's own reasoning-gym family gives; the last number counts where the
    answer is one.

    `facts["family"]` names the family, `facts["entry"]` is the data set's entry.
    """
    import reasoning_gym

    family, entry = sample.facts["family"], dict(sample.facts["entry"])
    dataset: Any = reasoning_gym.create_dataset(family, size=1, seed=0)
    return float(
        dataset.score_answer(parse_final_answer(sample.completion, str(entry["answer"])), entry)
    )


def parse_final_answer(completion: str, answer: str) -> str:
    """What the completion answers: its last number when the answer is a number, else what it gives
    as its answer (in a box, behind "answer is"), or the whole text trimmed.
    """
    text = completion.strip()
    if parse_number(answer) is None:
        return final_answer_text(text).strip()
    said = normalize_number_text(final_answer_text(text))
    term = find_last_number(said)
    return text if term is None else said[term.start : term.end]
