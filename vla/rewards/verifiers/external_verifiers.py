"""Verifiers by external libraries: equal expressions (math-verify) and reasoning-gym scores."""

from __future__ import annotations

import re

from vla.rewards.sample import UNSCORABLE, Sample
from vla.rewards.verifiers.numbers import (
    final_answer_text,
    find_last_number,
    normalize_number_text,
    parse_number,
)

MAX_CHARACTERS = 500
"""Characters of an expression."""
MAX_BRACKETS = 50
"""Brackets of an expression; the library takes minutes over thousands of them."""
_FUNCTIONS = (
    "sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|pi|infty|inf|arcsin|arccos|arctan|sinh|cosh|tanh"
    "|max|min|abs|theta"
)
_PIECE = (
    rf"\d++(?:\.\d++)?+|\.\d++|(?<![a-zA-Z])(?:{_FUNCTIONS})(?![a-zA-Z])"
    r"|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])"
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
    """Check that a text is LaTeX or an expression: single letters, numbers, names of functions and
    an operator."""
    text = to_latex(text)
    if re.search(r"\\[a-zA-Z{]|^\$.+\$$", text):
        return True
    score = re.fullmatch(r"\d+\s*[-:]\s*\d+", text)  # 3-2 and 10:30 are scores and times
    return (
        score is None
        and _EXPRESSION.fullmatch(text) is not None
        and _OPERATOR.search(text) is not None
    )


def to_latex(text: str) -> str:
    """Convert signs and roots of Unicode and names of functions to LaTeX."""
    text = normalize_number_text(text).strip()
    text = re.sub(
        r"\u221a\s*(?:\(([^()]*)\)|(\w+))", lambda match: rf"\sqrt{{{match[1] or match[2]}}}", text
    )
    for sign, command in _LATEX:
        text = text.replace(sign, command)
    text = re.sub(r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    return re.sub(rf"(?<![a-zA-Z\\])({_FUNCTIONS})(?![a-zA-Z])", r"\\\1", text)


def find_final_expression(text: str) -> str | None:
    """Find the last expression of a text.

    It is the last LaTeX span of the final answer, else the final answer itself. The fallback is the
    longest run of parts of an expression at the end of the last line.
    """
    answer = final_answer_text(text)
    spans: list[str] = [next(filter(None, span.groups())) for span in _SPAN.finditer(answer)]
    if spans:
        return spans[-1]
    bare = to_latex(answer)
    if answer is not text and is_expression(bare):
        return bare
    line = next((line for line in reversed(bare.splitlines()) if line.strip()), "").rstrip(" .")
    if "\\" in line:
        return re.split(r"(?<![a-zA-Z\\])[a-zA-Z]{2,}(?![a-zA-Z}])[:,]?\s", line)[-1]
    ends = [match for match in _EXPRESSION.finditer(line) if match.end() == len(line)]
    return ends[-1][0] if ends else None


def is_too_large(text: str) -> bool:
    """Check whether an expression is too long, nested or large for the library."""
    brackets = sum(map(text.count, "([{"))
    return (
        len(text) > MAX_CHARACTERS
        or brackets > MAX_BRACKETS
        or _TOO_LARGE.search(normalize_number_text(text)) is not None
    )


def math_equal(sample: Sample) -> float:
    """1 when the completion's final expression equals the answer's mathematically (1/2 and 0.5, 2x
    and x + x).

    Unscorable when the answer itself cannot be parsed. An expression that is too long, too nested
    or too large (`is_too_large`) is not computed and equals nothing.
    """
    from math_verify import parse, verify

    if is_too_large(sample.answer):
        return UNSCORABLE
    # The library's own time limits use signals, which need the main thread; the verifier process
    # has a limit of its own.
    answer = parse(f"${to_latex(sample.answer).strip('$')}$", parsing_timeout=None)
    if not answer:
        return UNSCORABLE
    expression = find_final_expression(sample.completion)
    text = sample.completion[-MAX_CHARACTERS:] if expression is None else expression
    if is_too_large(text):
        return 0.0
    latex = text if expression is None else f"${to_latex(expression).strip('$')}$"
    completion = parse(latex, parsing_timeout=None)
    return float(verify(answer, completion, timeout_seconds=None))


def reasoning_gym_score(sample: Sample) -> float:
    """The score by the problem's reasoning-gym family.

    `facts["family"]` names the family, `facts["entry"]` is the entry of the data set. The last
    number of the completion is scored where the answer is a number.
    """
    import reasoning_gym

    family = sample.facts["family"]
    entry = dict(sample.facts["entry"])
    dataset = reasoning_gym.create_dataset(family, size=1, seed=0)
    return float(
        dataset.score_answer(parse_final_answer(sample.completion, str(entry["answer"])), entry)
    )


def parse_final_answer(completion: str, answer: str) -> str:
    """Extract the answer of a completion: its last number when the answer is a number, else its
    final answer (`numbers.final_answer_text`)."""
    text = completion.strip()
    if parse_number(answer) is None:
        return final_answer_text(text).strip()
    final = normalize_number_text(final_answer_text(text))
    term = find_last_number(final)
    return text if term is None else final[term.start : term.end]
