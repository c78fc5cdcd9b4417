"""Suggestions for misspelled names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_name(wrong: str, known: Iterable[str]) -> str | None:
    """The known name most similar to a wrong one; None where none is similar."""
    return next(iter(get_close_matches(wrong, list(known), n=1)), None)


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?` with the most similar name; empty where none is similar."""
    near = nearest_name(wrong, known)
    return "" if near is None else f"; did you mean {near}?"


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """`did_you_mean`, followed by all names that can be chosen."""
    choices = list(known)
    listed = f"; choose from {', '.join(choices)}" if choices else ""
    return did_you_mean(wrong, choices) + listed
