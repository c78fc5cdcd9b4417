"""How many problems an iteration asks: the less its answers differ, the more of them it can afford.

Answers that are equal are computed once, in the rollout and in the update. A policy that has learned something gives
most answers several times, and most of its groups have one return and teach nothing, so what a rollout costs and what
it teaches fall together. Asking more problems keeps both up.
"""

from __future__ import annotations

from typing import Any

import torch

from vla.rl.batch import ReduceSum, single_process
from vla.types import Rollout


class Oversampling:
    """`num_starts` problems where all answers differ; `num_starts / d` where the share d of them is distinct, at most
    `limit` times `num_starts`. The share is a running mean, half of it the last rollout's.
    """

    def __init__(self, num_starts: int, limit: float) -> None:
        self.num_starts, self.limit = num_starts, limit
        self.distinct = 1.0

    @property
    def count(self) -> int:
        """Problems to ask in the next iteration."""
        return int(self.num_starts * min(self.limit, 1.0 / self.distinct))

    def learn(self, rollout: Rollout, reduce_sum: ReduceSum = single_process) -> None:
        """Hear what was answered, in all processes."""
        tokens = rollout.trace["tokens"].masked_fill(~rollout.mask, -1)
        named = torch.cat([rollout.group[rollout.trajectory][:, None], tokens], dim=1)
        distinct = torch.tensor([len(torch.unique(named, dim=0)), len(named)], dtype=torch.float64)
        found, count = reduce_sum(distinct).tolist()
        self.distinct = 0.5 * (self.distinct + found / count)

    def state_dict(self) -> dict[str, Any]:
        return {"distinct": self.distinct}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.distinct = float(state["distinct"])
