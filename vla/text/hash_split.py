"""Training and held-out sides of questions, by a hash of their words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from vla.data.messages import normalize_for_split
from vla.text.problem import Problem


def is_held_out(question: str, fraction: float) -> bool:
    """Whether a question belongs to evaluation: decided by the hash of its words, for this share of
    all questions."""
    return split_position(question) < fraction


def split_position(question: str) -> float:
    """Where a question stands between 0 and 1: a hash of its words. Held-out questions stand below
    their share."""
    return int.from_bytes(digest("held out: " + normalize_for_split(question))[:8], "big") / 2**64


def split_problems(
    problems: Sequence[Problem], fraction: float
) -> tuple[list[Problem], list[Problem]]:
    """(training, evaluation) problems.

    Raises ValueError when one of them is empty.
    """
    train = [problem for problem in problems if not is_held_out(problem.key, fraction)]
    held_out = [problem for problem in problems if is_held_out(problem.key, fraction)]
    if not train or not held_out:
        raise ValueError(
            f"holdout_fraction ({fraction}) leaves {len(train)} training and {len(held_out)} evaluation problems of"
            f" {len(problems)}: choose a fraction nearer to 0.5, or more problems"
        )
    return train, held_out


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
