"""How many problems an iteration asks: the cheaper they get, the more of them it can afford.

What begins alike is computed once, and groups of one return are not computed again in the update. A
policy that has learned something gives most answers several times, and most of its groups have one
return, so what a problem costs and what it teaches fall together. Asking more problems keeps both
up.
"""

from __future__ import annotations

from typing import Any

import torch

from vla.collectives import ReduceSum, single_process
from vla.data.prefix_tree import PrefixTree
from vla.rl.dynamic_sampling import informative_groups
from vla.types import Rollout

UPDATE_COST = 2.0
"""Of a token in the update, over that in the rollout: a backward pass is two forward passes."""


class AdaptiveBatchSize:
    """`num_starts` problems where they cost the most that they have cost so far; where they cost a
    share of it, so many more, at most `limit` times `num_starts`. The cost is a running mean, half
    of it the last rollout's.
    """

    def __init__(self, num_starts: int, limit: float) -> None:
        self.num_starts, self.limit = num_starts, limit
        self.cost = self.most = 0.0

    @property
    def count(self) -> int:
        """Problems to ask in the next iteration."""
        return (
            int(self.num_starts * min(self.limit, self.most / self.cost))
            if self.cost
            else self.num_starts
        )

    def learn(self, rollout: Rollout, reduce_sum: ReduceSum = single_process) -> None:
        """Hear what was answered, in all processes."""
        numbers = torch.tensor(
            [rollout_cost(rollout), len(torch.unique(rollout.group))], dtype=torch.float64
        )
        total, num_problems = reduce_sum(numbers).tolist()
        found = total / num_problems
        self.cost = 0.5 * (self.cost + found) if self.cost else found
        self.most = max(self.most, found)

    def state_dict(self) -> dict[str, Any]:
        return {"cost": self.cost, "most": self.most}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cost, self.most = float(state["cost"]), float(state["most"])


def rollout_cost(rollout: Rollout) -> float:
    """Tokens that pass through the model, those of groups that teach something counted for the
    update as well."""
    learned = informative_groups(rollout)[rollout.trajectory].tolist()
    asked, asked_mask = (
        rollout.observation.tokens.tolist(),
        rollout.observation.token_mask.sum(1).tolist(),
    )
    said, said_mask = (
        rollout.trace["tokens"].tolist(),
        rollout.trace.get("mask", rollout.mask).sum(1).tolist(),
    )
    every, again = PrefixTree(), PrefixTree()
    for prompt, n, completion, length, teaches in zip(
        asked, asked_mask, said, said_mask, learned, strict=True
    ):
        path = [*prompt[:n], *completion[:length]]
        every.add(path)
        if teaches:
            again.add(path)
    return len(every.tokens) + UPDATE_COST * len(again.tokens)
