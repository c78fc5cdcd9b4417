"""Training and held-out sides of questions, by a hash of their words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from vla.data.messages import normalize_for_split
from vla.text.problem import Problem


def is_held_out(question: str, fraction: float) -> bool:
    """True for questions of the evaluation side: this fraction of all, by a hash of the words."""
    return split_position(question) < fraction


def split_position(question: str) -> float:
    """A hash of the words of a question, in [0, 1); held-out questions have the lowest."""
    return int.from_bytes(digest("held out: " + normalize_for_split(question))[:8], "big") / 2**64


def split_problems(
    problems: Sequence[Problem], fraction: float
) -> tuple[list[Problem], list[Problem]]:
    """(training, evaluation) problems.

    Raises:
        ValueError: one side is empty.
    """
    train = [problem for problem in problems if not is_held_out(problem.key, fraction)]
    held_out = [problem for problem in problems if is_held_out(problem.key, fraction)]
    if not train or not held_out:
        raise ValueError(
            f"holdout_fraction ({fraction}) leaves {len(train)} training and {len(held_out)} "
            f"evaluation problems of {len(problems)}: choose a fraction nearer to 0.5, or more "
            "problems"
        )
    return train, held_out


def digest(text: str) -> bytes:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).digest()
