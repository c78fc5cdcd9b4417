"""Curriculum over problem families: half of the draws come from the newest open family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_RECENT = 3
"""Iterations over which success is averaged to decide that a family is mastered."""


class Curriculum:
    """Draws of problems from the open families.

    `families[k]` holds the problem numbers of family k, from easy to hard. The next family opens
    when the mean sampled success of the last three iterations reaches `curriculum_threshold`.
    Without a threshold all are open and drawn evenly. The draws depend on the seed and the
    iteration alone, so a resumed run repeats them.
    """

    def __init__(
        self, families: Sequence[Sequence[int]], curriculum_threshold: float | None, seed: int
    ) -> None:
        self.families = [list(family) for family in families]
        self.curriculum_threshold = curriculum_threshold
        self.seed = seed
        self.num_open = len(self.families) if curriculum_threshold is None else 1
        self.recent: list[float] = []

    def draw(self, iteration: int, attempt: int, count: int) -> list[int]:
        """Numbers of `count` problems, distinct where a family has enough."""
        rng = np.random.default_rng([self.seed, iteration, attempt])
        open_families = self.families[: self.num_open]
        if self.curriculum_threshold is None or self.num_open == 1:
            even = [1 / len(open_families)] * len(open_families)
            shares = rng.multinomial(count, even).tolist()
        else:
            newest = (count + 1) // 2
            others = self.num_open - 1
            shares = [*rng.multinomial(count - newest, [1 / others] * others).tolist(), newest]
        drawn: list[int] = []
        for family, share in zip(open_families, shares, strict=True):
            drawn += rng.choice(family, size=share, replace=share > len(family)).tolist()
        return drawn

    def update(self, success: float) -> None:
        """Record the mean sampled success of an iteration; open the next family when it is due."""
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
        self.num_open = int(state["num_open"])
        self.recent = list(state["recent"])
