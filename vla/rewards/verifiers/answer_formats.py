"""Verifiers of a multiple-choice letter, a date, and a number with its unit."""

from __future__ import annotations

import calendar
import re
from fractions import Fraction

from vla.rewards.sample import UNSCORABLE, Sample
from vla.rewards.verifiers.numbers import (
    final_answer_text,
    find_last_number,
    find_numbers,
    normalize_number_text,
    strip_math_dollars,
)

MONTHS = tuple(name.lower() for name in calendar.month_name[1:])
_MONTH_NAMES = "|".join(f"{name[:3]}(?:{name[3:]})?" if name != "may" else "may" for name in MONTHS)
_MONTH = rf"({_MONTH_NAMES}|sept)\.?"
_DATE = re.compile(
    rf"\b(?:(?P<y>\d{{4}})-(?P<m>\d{{1,2}})-(?P<d>\d{{1,2}})(?!\d)"
    rf"|(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:\s+of)?\s+(?P<month>{_MONTH})"
    rf"(?:,?\s+(?P<year>\d{{4}})\b)?"
    rf"|(?P<month2>{_MONTH})\s+(?P<day2>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?\s+(?P<year2>\d{{4}})\b)?"
    rf"|(?P<month3>{_MONTH}),?\s+(?P<year3>\d{{4}})\b"
    r"|(?P<written>\d{1,2}(?P<between>[./-])\d{1,2}(?P=between)\d{2,4})(?!\d))",
    re.IGNORECASE,
)
_LETTER = r"(?:\(\s*([A-Za-z])\s*\)|\[\s*([A-Z])\s*\]|(?<![\w'\u2019-])([A-Z])(?![\w'\u2019]|-\w))"
_CHOICE = re.compile(_LETTER)
_ONE_CHOICE = re.compile(rf"(?:(?i:option|choice|answer)\s+)?{_LETTER}\s*[.:)]?")
_UNIT = re.compile(
    r"\s*-?(%|\u00b0\s?[CF]?\b|\u00b0|[$\u20ac\u00a3\u00a5]"
    r"|(?:per\s?cent|(?:(?:square|cubic|degrees?)\s+)?[^\W\d_]+)(?:\^\{?-?\d\}?)?"
    r"(?:\s*(?:/|\bper\b)\s*[^\W\d_]+(?:\^\{?-?\d\}?)?)?)"
)
CURRENCIES = ("$", "\u20ac", "\u00a3", "\u00a5")
SPELLINGS = {
    "%": "percent",
    "$": "dollar usd buck",
    "\u20ac": "euro eur",
    "\u00a3": "pound gbp",
    "\u00a5": "yen jpy",
    "km": "kilometer kilometre",
    "m": "meter metre",
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "mi": "mile",
    "ft": "foot feet",
    "in": "inch inches",
    "yd": "yard",
    "kg": "kilogram",
    "g": "gram gramme",
    "mg": "milligram",
    "lb": "lbs",
    "t": "tonne",
    "l": "liter litre",
    "ml": "milliliter millilitre",
    "s": "second sec",
    "ms": "millisecond",
    "min": "minute",
    "h": "hour hr",
    "d": "day",
    "yr": "year",
    "\u00b0": "degree deg",
    "\u00b0c": "celsius",
    "\u00b0f": "fahrenheit",
    "hz": "hertz",
    "j": "joule",
    "n": "newton",
    "w": "watt",
    "v": "volt",
    "pa": "pascal",
}
_SHORT = {
    spelling: short for short, names in SPELLINGS.items() for spelling in (short, *names.split())
}
Quantity = tuple[Fraction, str]
"""A value and the short name of its unit."""


def choice(sample: Sample) -> float:
    """1 when the completion chooses the letter of the answer: B, (B), B., \\text{(B)}, "the answer
    is B".

    Unscorable when the answer is no single letter.
    """
    right = read_choice(sample.answer)
    return UNSCORABLE if right is None else float(find_choice(sample.completion) == right)


def read_choice(text: str) -> str | None:
    """Parse a text that is a choice and nothing else."""
    match = _ONE_CHOICE.fullmatch(_strip_markup(final_answer_text(text)))
    return None if match is None else _letter(match)


def find_choice(text: str) -> str | None:
    """Find the letter that a text chooses.

    It is the letter of the final answer, else the one at the beginning (B. Paris), else the last
    one. A before a word is an article, and I before a word a pronoun; neither is a choice.
    """
    answer = final_answer_text(text)
    if answer is text and (
        match := re.match(r"\s*[([]?([A-Z])(?:[.:)\]]|\s*$)", _strip_markup(text))
    ):
        return match[1]
    answer = _strip_markup(answer)
    letters = [
        m
        for m in _CHOICE.finditer(answer)
        if m[1] or m[2] or not re.match(r"A\s+[a-z]|I\s+[a-z]|I['\u2019]", answer[m.start() :])
    ]
    if not letters:
        return None
    return _letter(letters[-1] if answer == _strip_markup(text) else letters[0])


def _strip_markup(text: str) -> str:
    return re.sub(r"[$*]|\\[()\[\]]", "", normalize_number_text(text)).strip()


def _letter(match: re.Match[str]) -> str:
    return str(match[1] or match[2] or match[3]).upper()


def date(sample: Sample) -> float:
    """1 when the last date of the completion is that of the answer: 12 May 1999, May 12, 1999,
    1999-05-12.

    A date in figures alone (12/05/1999) has two readings, so both must be written alike. Unscorable
    when the answer is no date.
    """
    right = read_dates(sample.answer)
    if not right:
        return UNSCORABLE
    dates = read_dates(final_answer_text(sample.completion))
    return float(bool(dates) and dates[-1] == right[-1])


def is_date(text: str) -> bool:
    """Check that a text is one date and nothing else."""
    return _DATE.fullmatch(normalize_number_text(text).strip()) is not None


def read_dates(text: str) -> list[tuple[str, ...]]:
    """Find the dates of a text as (year, month, day), "" for a missing part; dates in figures alone
    keep the written order."""
    dates = []
    for match in _DATE.finditer(normalize_number_text(text)):
        part = {name: value for name, value in match.groupdict().items() if value}
        if "written" in part:
            dates.append(tuple(piece.lstrip("0") for piece in re.split(r"[./-]", part["written"])))
            continue
        values = {name.rstrip("23"): value for name, value in part.items()}
        month = values.get("m") or str(_month_number(values["month"]))
        day = values.get("d") or values.get("day", "")
        year = values.get("y") or values.get("year", "")
        dates.append((year, month.lstrip("0"), day.lstrip("0")))
    return dates


def _month_number(name: str) -> int:
    return next(i for i, month in enumerate(MONTHS, start=1) if month.startswith(name.lower()[:3]))


def quantity(sample: Sample) -> float:
    """1 when the last number of the completion and its unit equal those of the answer: 5 km, 5
    kilometers, $18, 18 dollars.

    A percentage equals its fraction. Other units are not converted, and a number without its unit
    is not enough. Unscorable when the answer is no number with a unit.
    """
    right = read_quantity(sample.answer)
    if right is None:
        return UNSCORABLE
    last = find_last_quantity(final_answer_text(sample.completion))
    return float(last is not None and _percent_to_fraction(last) == _percent_to_fraction(right))


def read_quantity(text: str) -> Quantity | None:
    """Parse a text that is a number with a unit and nothing else."""
    text = strip_math_dollars(normalize_number_text(text)).strip().rstrip(".")
    numbers = find_numbers(text)
    if len(numbers) != 1 or numbers[0].value is None:
        return None
    number = numbers[0]
    before = text[: number.start].strip()
    unit = _UNIT.match(text, number.end)
    if before in CURRENCIES:
        return (numbers[0].value, before) if number.end == len(text) else None
    if before or unit is None or unit.end() != len(text):
        return None
    name = _normalize_unit(unit[1])
    # 2x and 3rd are no quantities, nor is 12 May.
    is_suffix = text[number.end].isalpha() and (len(unit[1]) < 2 or name not in SPELLINGS)
    is_month = unit[1].lower().rstrip(".") in (*MONTHS, *(month[:3] for month in MONTHS))
    return None if is_suffix or is_month else (numbers[0].value, name)


def find_last_quantity(text: str) -> Quantity | None:
    """Find the last number of a text with the unit before or after it ("" for none)."""
    text = strip_math_dollars(normalize_number_text(text))
    term = find_last_number(text)
    if term is None or term.value is None:
        return None
    before = text[: term.start].rstrip()[-1:]
    unit = _UNIT.match(text, term.end)
    if before in CURRENCIES:
        return term.value, before
    return term.value, "" if unit is None else _normalize_unit(unit[1])


def _normalize_unit(unit: str) -> str:
    parts = re.split(r"\s*(?:/|\bper\b(?!\s?cent))\s*", unit.strip())
    return "/".join(_short_name(re.sub(r"[\s{}]", "", part)) for part in parts)


def _short_name(name: str) -> str:
    lower, caret, power = name.lower().partition("^")
    for word, exponent in (("square", "2"), ("cubic", "3"), ("degrees", ""), ("degree", "")):
        if lower.startswith(word) and lower != word:
            return _short_name(lower.removeprefix(word) + (exponent and f"^{exponent}"))
    return (
        (_SHORT.get(lower) or _SHORT.get(lower.removesuffix("s")) or lower.removesuffix("s"))
        + caret
        + power
    )


def _percent_to_fraction(quantity: Quantity) -> Quantity:
    value, unit = quantity
    return (value / 100, "") if unit == "%" else quantity
