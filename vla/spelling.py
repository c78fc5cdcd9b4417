"""Suggestions for misspelled names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?` with the known name nearest to a wrong one; empty without one."""
    near = get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """The nearest known name, then all that can be chosen."""
    choices = list(known)
    listed = f"; choose from {', '.join(choices)}" if choices else ""
    return did_you_mean(wrong, choices) + listed
