"""Answers of other forms than a number: a letter of multiple choice, a date, a number with its
unit."""

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
_MONTH = rf"({'|'.join(f'{name[:3]}(?:{name[3:]})?' if name != 'may' else 'may' for name in MONTHS)}|sept)\.?"
_DATE = re.compile(
    rf"\b(?:(?P<y>\d{{4}})-(?P<m>\d{{1,2}})-(?P<d>\d{{1,2}})(?!\d)"
    rf"|(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:\s+of)?\s+(?P<month>{_MONTH})(?:,?\s+(?P<year>\d{{4}})\b)?"
    rf"|(?P<month2>{_MONTH})\s+(?P<day2>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?\s+(?P<year2>\d{{4}})\b)?"
    rf"|(?P<month3>{_MONTH}),?\s+(?P<year3>\d{{4}})\b"
    r"|(?P<written>\d{1,2}(?P<between>[./-])\d{1,2}(?P=between)\d{2,4})(?!\d))",
    re.IGNORECASE,
)
_LETTER = r"(?:\(\s*([A-Za-z])\s*\)|\[\s*([A-Z])\s*\]|(?<![\w'\u2019-])([A-Z])(?![\w'\u2019]|-\w))"
_CHOICE = re.compile(_LETTER)
_ONE_CHOICE = re.compile(rf"(?:(?i:option|choice|answer)\s+)?{_LETTER}\s*[.:)]?")
_UNIT = re.compile(
    r"\s*-?(%|\u00b0\s?[CF]?\b|\u00b0|[$\u20ac\u00a3\u00a5]|(?:per\s?cent|(?:(?:square|cubic|degrees?)\s+)?[^\W\d_]+)(?:\^\{?-?\d\}?)?"
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


def choice(sample: Sample) -> float:
    """1 when the letter that the completion chooses is the answer's: B, (B), B., \\text{(B)}, "the
    answer is B".

    Unscorable when the answer is no single letter.
    """
    right = read_choice(sample.answer)
    return UNSCORABLE if right is None else float(find_choice(sample.completion) == right)


def read_choice(text: str) -> str | None:
    """The letter of a text that is a choice and nothing else."""
    match = _ONE_CHOICE.fullmatch(_bare(final_answer_text(text)))
    return None if match is None else _letter(match)


def find_choice(text: str) -> str | None:
    """The letter that a text ends on: what it gives as its answer, else the one it begins with (B.
    Paris), else its last. A before a word is an article, and I a person.
    """
    said = final_answer_text(text)
    if said is text and (match := re.match(r"\s*[([]?([A-Z])(?:[.:)\]]|\s*$)", _bare(text))):
        return match[1]
    said = _bare(said)
    found = [
        m
        for m in _CHOICE.finditer(said)
        if m[1] or m[2] or not re.match(r"A\s+[a-z]|I\s+[a-z]|I['\u2019]", said[m.start() :])
    ]
    if not found:
        return None
    return _letter(found[-1] if said == _bare(text) else found[0])


def _bare(text: str) -> str:
    return re.sub(r"[$*]|\\[()\[\]]", "", normalize_number_text(text)).strip()


def _letter(match: re.Match[str]) -> str:
    return str(match[1] or match[2] or match[3]).upper()


def date(sample: Sample) -> float:
    """1 when the last date of the completion is the answer's: 12 May 1999, May 12, 1999,
    1999-05-12. One in figures alone, 12/05/1999, must be written alike, for it has two readings.
    Unscorable when the answer is no date.
    """
    right = read_dates(sample.answer)
    if not right:
        return UNSCORABLE
    found = read_dates(final_answer_text(sample.completion))
    return float(bool(found) and found[-1] == right[-1])


def is_date(text: str) -> bool:
    """Whether a text is one date and nothing else."""
    return _DATE.fullmatch(normalize_number_text(text).strip()) is not None


def read_dates(text: str) -> list[tuple[str, ...]]:
    """The dates of a text as (year, month, day), "" where one is not said; those in figures alone
    as written."""
    found = []
    for match in _DATE.finditer(normalize_number_text(text)):
        part = {name: value for name, value in match.groupdict().items() if value}
        if "written" in part:
            found.append(tuple(piece.lstrip("0") for piece in re.split(r"[./-]", part["written"])))
            continue
        values = {name.rstrip("23"): value for name, value in part.items()}
        month = values.get("m") or str(_month_number(values["month"]))
        day, year = (
            values.get("d") or values.get("day", ""),
            values.get("y") or values.get("year", ""),
        )
        found.append((year, month.lstrip("0"), day.lstrip("0")))
    return found


def _month_number(name: str) -> int:
    return next(i for i, month in enumerate(MONTHS, start=1) if month.startswith(name.lower()[:3]))


def quantity(sample: Sample) -> float:
    """1 when the last number of the completion and its unit are the answer's: 5 km, 5 kilometers,
    $18, 18 dollars.

    A percentage may be said as a fraction. Other units are not converted, and a number without its
    unit is not enough. Unscorable when the answer is no number with a unit.
    """
    right = read_quantity(sample.answer)
    if right is None:
        return UNSCORABLE
    found = find_last_quantity(final_answer_text(sample.completion))
    return float(found is not None and _without_percent(found) == _without_percent(right))


def read_quantity(text: str) -> Quantity | None:
    """Value and unit of a text that is a number with a unit and nothing else."""
    text = strip_math_dollars(normalize_number_text(text)).strip().rstrip(".")
    found = find_numbers(text)
    if len(found) != 1 or found[0].value is None:
        return None
    before, unit = text[: found[0].start].strip(), _UNIT.match(text, found[0].end)
    if before in CURRENCIES:
        return (found[0].value, before) if found[0].end == len(text) else None
    if before or unit is None or unit.end() != len(text):
        return None
    name = _spelled(unit[1])
    glued = text[found[0].end].isalpha() and (len(unit[1]) < 2 or name not in SPELLINGS)  # 2x, 3rd
    return (
        None
        if glued or unit[1].lower().rstrip(".") in (*MONTHS, *(m[:3] for m in MONTHS))
        else (found[0].value, name)
    )


def find_last_quantity(text: str) -> Quantity | None:
    """The number that a text ends on, with the unit before or behind it ("" where there is
    none)."""
    text = strip_math_dollars(normalize_number_text(text))
    term = find_last_number(text)
    if term is None or term.value is None:
        return None
    before, unit = text[: term.start].rstrip()[-1:], _UNIT.match(text, term.end)
    if before in CURRENCIES:
        return term.value, before
    return term.value, "" if unit is None else _spelled(unit[1])


def _spelled(unit: str) -> str:
    parts = re.split(r"\s*(?:/|\bper\b(?!\s?cent))\s*", unit.strip())
    return "/".join(_short(re.sub(r"[\s{}]", "", part)) for part in parts)


def _short(name: str) -> str:
    lower, caret, power = name.lower().partition("^")
    for word, exponent in (("square", "2"), ("cubic", "3"), ("degrees", ""), ("degree", "")):
        if lower.startswith(word) and lower != word:
            return _short(lower.removeprefix(word) + (exponent and f"^{exponent}"))
    return (
        (_SHORT.get(lower) or _SHORT.get(lower.removesuffix("s")) or lower.removesuffix("s"))
        + caret
        + power
    )


def _without_percent(found: Quantity) -> Quantity:
    value, unit = found
    return (value / 100, "") if unit == "%" else found
