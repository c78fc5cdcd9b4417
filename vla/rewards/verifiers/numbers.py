"""Exact parsing of numbers in text: 1,000 and 1 000, .5, 1e5, 6.02 x 10^23, 3/4, 1 1/2,
\\frac{3}{4}, with any minus sign of Unicode; and extraction of the final answer.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 400
"""Largest number of digits, and largest exponent; a larger number has no value and equals none."""

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d", "-"),
        "\uff0b": "+",
        "\u2044": "/",
        "\uff05": "%",
        **dict.fromkeys("\u00a0\u2007\u2008\u2009\u202f~", "\u2009"),
        "\u2019": "'",
        "\uff0c": ",",
        "\uff0e": ".",
    }
)
_RAISED = dict(
    zip(
        "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b",
        "0123456789-",
        strict=True,
    )
)
_INTEGER = r"(?:\d{1,3}(?:[,' \u2009_]\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+)(?!\d)"
_UNSIGNED = rf"(?<!\d)(?<!\d\.)(?:{_INTEGER}(?:\.\d+)?|(?<!\.)\.\d+)(?:[eE][-+]?\d+)?"
_NUMBER = rf"[-+]?{_UNSIGNED}"
_POWER = r"(?:\^|\*\*)\s*(?:\{\s*([-+]?\d+)\s*\}|([-+]?\d+))"
_PART = rf"\s*(?:\{{\s*({_NUMBER})\s*\}}|(\d))"
TERM = re.compile(
    rf"(?P<fraction>[-+]?\\[dtc]?frac{_PART}{_PART})"
    rf"|(?P<mixed>[-+]?\d+)[ \u2009](?P<over>\d+)\s?/\s?(?P<under>\d+)(?![\d.])"
    rf"|(?P<number>{_NUMBER})(?!\.?\d)"
    rf"(?:\s*(?:\\times|\\cdot|[x*\u00d7\u00b7])\s*10\s*{_POWER}|{_POWER}"
    rf"|\s?/\s?(?P<divisor>{_UNSIGNED})(?!\.?\d))?"
)
_REMARK = re.compile(
    r"\([^()]*[^\W\d_][^()]*\)|(?<=\S)\s*\[\d+\]"
    r"|\b(?:steps?|lines?|parts?|equations?|eq\.|sections?|pages?|examples?|figures?|tables?"
    r"|chapters?|footnotes?)"
    r"\s+\(?\d+(?:\.\d+)*\)?:?",
    re.IGNORECASE,
)
_MARKED = re.compile(r"####|\b(?:final\s+)?answer\s*(?:is\b|:|=)\s*:?", re.IGNORECASE)

_REST = re.compile(r"\n|[.;!?]\s+(?=[A-Z])|[,\s]\s*(?:because|since)\b")


@dataclass(frozen=True)
class NumberSpan:
    """A number in a text, from `start` to `end`; `value` is None where it has none (9^9^9, x/2)."""

    value: Fraction | None
    start: int
    end: int


def normalize_number_text(text: str) -> str:
    """Normalize a text: one minus sign, one thin space, ^{2} for superscripts, a/b for fractions of
    one character, no markup of LaTeX.
    """
    text = re.sub(r"\\!\s*", "", text.translate(_PLAIN).replace("{,}", ",")).replace("**", "^")
    text = re.sub(r"(?<!\\)\\[,;: ]", "\u2009", text).replace(r"\%", "%").replace(r"\$", "$")
    text = re.sub(r"(?<=[=({\[$<>]) ?- (?=[\d.$\\])", " -", text)
    text = re.sub(r"(?<![\w)\]}])-([$\u20ac\u00a3\u00a5])(?=[\d.])", r"\1-", text)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![a-zA-Z])", "", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(
        f"[{''.join(_RAISED)}]+",
        lambda match: f"^{{{''.join(map(_RAISED.__getitem__, match[0]))}}}",
        text,
    )
    return re.sub("[\u00bc-\u00be\u2150-\u215e]", lambda match: _small_fraction(match[0]), text)


def _small_fraction(character: str) -> str:
    return f" {unicodedata.normalize('NFKC', character)}".replace("\u2044", "/")


def strip_math_dollars(text: str) -> str:
    """Remove the dollar signs around mathematics; those of money stay."""
    return re.sub(r"\$(\S[^$]*?)(?<=\S)\$(?!\d)", r" \1 ", text.replace("$$", "$"))


def final_answer_text(text: str) -> str:
    """Extract the final answer of a text.

    It is the content of the last \\boxed{}, else the sentence after the last "####" or "answer is"
    up to a reason ("because"), else the whole text.
    """
    box = find_last_box(text)
    marks = list(_MARKED.finditer(text))
    rest = text[marks[-1].end() :].strip() if marks else ""
    answer = _REST.split(rest)[0] if box is None else box
    fallback = text if box is None else box
    return re.sub(r"^[-\u2212]\s+(?=[\d.$\\])", "-", answer.strip()) or fallback


def find_last_box(text: str) -> str | None:
    """Find the content of the last closed \\boxed{...} or \\fbox{...}."""
    content = None
    starts: list[int | None] = []  # of open braces; None for one that opens no box
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{|(?<!\\)[{}]", text):
        if match[0] != "}":
            starts.append(match.end() if match[0] != "{" else None)
        elif starts and (start := starts.pop()) is not None:
            content = text[start : match.start()]
    return content


def find_numbers(text: str) -> list[NumberSpan]:
    """Find the numbers of a normalized text in their order; an exponent is none."""
    numbers = []
    for match in TERM.finditer(text):
        before = text[: match.start()].rstrip(" {(")
        after = text[match.end() :]
        if before.endswith(("^", "_")):
            continue
        part_of_more = before.endswith("/") or re.match(r"\s?\^|\s?/\s?[\d(]", after)
        value = None if part_of_more else _value(match, text)
        numbers.append(NumberSpan(value, match.start(), match.end()))
    return numbers


def find_last_number(text: str) -> NumberSpan | None:
    """Find the last number of a normalized text, without remarks in parentheses and "step 3"."""
    blanked = _REMARK.sub(lambda match: " " * len(match[0]), text)
    numbers = find_numbers(blanked) or find_numbers(text)
    return numbers[-1] if numbers else None


def find_answer_number(text: str) -> Fraction | None:
    """Find the number of the final answer (`final_answer_text`), or the last number.

    A minus after a digit, a letter or a bracket (12-7, x-7) is no sign.
    """
    term = find_last_number(normalize_number_text(final_answer_text(text)))
    return None if term is None else term.value


def parse_number(text: str) -> Fraction | None:
    """Parse a text that is a number and nothing else."""
    text = strip_math_dollars(normalize_number_text(text)).strip()
    numbers = find_numbers(text)
    if len(numbers) != 1 or (numbers[0].start, numbers[0].end) != (0, len(text)):
        return None
    return numbers[0].value


def _value(match: re.Match[str], text: str) -> Fraction | None:
    is_operator = match.start() > 0 and (
        text[match.start() - 1].isalnum() or text[match.start() - 1] in ")}]"
    )
    sign = -1 if match[0][0] == "-" and not is_operator else 1
    try:
        if match["fraction"]:
            numerator = _number(match[2] or match[3])
            denominator = _number(match[4] or match[5])
            return sign * numerator / denominator
        if match["mixed"]:
            return sign * (
                abs(_number(match["mixed"])) + _number(match["over"]) / _number(match["under"])
            )
        value = sign * abs(_number(match["number"]))
        powers = match.groups()[-5:-1]
        if powers[0] or powers[1]:
            return value * _power(Fraction(10), powers[0] or powers[1])
        if powers[2] or powers[3]:
            return sign * _power(abs(value), powers[2] or powers[3])
        return value / _number(match["divisor"]) if match["divisor"] else value
    except (ZeroDivisionError, OverflowError):
        return None


def _number(digits: str) -> Fraction:
    digits = re.sub(r"[,' \u2009_]", "", digits)
    exponent = re.search(r"[eE]([-+]?\d+)$", digits)
    if len(digits) > MAX_DIGITS or (exponent and abs(int(exponent[1])) > MAX_DIGITS):
        raise OverflowError
    return Fraction(digits)


def _power(base: Fraction, exponent: str) -> Fraction:
    size = len(str(base.numerator)) + len(str(base.denominator))
    if len(exponent) > 4 or abs(int(exponent)) * size > 4 * MAX_DIGITS:
        raise OverflowError
    return base ** int(exponent)
