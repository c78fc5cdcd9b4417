"""Which problems an iteration asks: the families unlocked so far, half of the draws from the
newest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_RECENT = 3
"""Iterations over which success is averaged before a family is said to be mastered."""


class Curriculum:
    """`families[k]` are the numbers of the problems of family k, from easy to hard.

    With `curriculum_threshold` the next family joins when the mean sampled success of the last three
    iterations reaches it; without, all are open from the start and drawn alike. Iteration `i` draws
    the same problems in a resumed run.
    """

    def __init__(
        self, families: Sequence[Sequence[int]], curriculum_threshold: float | None, seed: int
    ) -> None:
        self.families, self.curriculum_threshold, self.seed = (
            [list(family) for family in families],
            curriculum_threshold,
            seed,
        )
        self.num_open = len(self.families) if curriculum_threshold is None else 1
        self.recent: list[float] = []

    def draw(self, iteration: int, attempt: int, count: int) -> list[int]:
        """Numbers of `count` problems, different ones where there are enough."""
        rng = np.random.default_rng([self.seed, iteration, attempt])
        open_families = self.families[: self.num_open]
        if self.curriculum_threshold is None or self.num_open == 1:
            shares = rng.multinomial(count, [1 / len(open_families)] * len(open_families))
        else:
            newest = (count + 1) // 2
            others = self.num_open - 1
            shares = [*rng.multinomial(count - newest, [1 / others] * others), newest]
        drawn: list[int] = []
        for family, share in zip(open_families, shares, strict=True):
            drawn += rng.choice(family, size=int(share), replace=int(share) > len(family)).tolist()
        return drawn

    def learn(self, success: float) -> None:
        """Hear the mean sampled success of an iteration; maybe open the next family."""
        self.recent = [*self.recent, success][-_RECENT:]
        mastered = self.curriculum_threshold is not None and len(self.recent) == _RECENT
        if (
            mastered
            and float(np.mean(self.recent)) >= (self.curriculum_threshold or 0.0)
            and self.num_open < len(self.families)
        ):
            self.num_open += 1
            self.recent = []

    def state_dict(self) -> dict[str, Any]:
        return {"num_open": self.num_open, "recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_open, self.recent = int(state["num_open"]), list(state["recent"])
