"""Adaptive number of problems per RL iteration: cheaper problems allow more of them.

Common prefixes are computed once, and the update skips groups whose returns are all equal. As a
policy improves, its answers repeat and more groups have equal returns, so both the cost and the
signal per problem fall. Drawing more problems keeps both up.
"""

from __future__ import annotations

import torch

from vla.collectives import ReduceSum, single_process
from vla.data.prefix_tree import PrefixTree
from vla.rl.dynamic_sampling import informative_groups
from vla.types import Rollout

UPDATE_COST = 2.0
"""Cost of a token in the update relative to the rollout: a backward pass is two forward passes."""


class AdaptiveBatchSize:
    """Adaptive number of problems per iteration.

    The count starts at `num_starts`. When the cost per problem (distinct tokens forwarded, a
    running mean with weight 1/2) drops below its maximum, the count grows in proportion, up to
    `limit * num_starts`.
    """

    def __init__(self, num_starts: int, limit: float) -> None:
        self.num_starts = num_starts
        self.limit = limit
        self.cost = 0.0
        self.max_cost = 0.0

    @property
    def count(self) -> int:
        """Number of problems of the next iteration."""
        if not self.cost:
            return self.num_starts
        return int(self.num_starts * min(self.limit, self.max_cost / self.cost))

    def update(self, rollout: Rollout, reduce_sum: ReduceSum = single_process) -> None:
        """Take the cost of a rollout into account, summed over all processes."""
        numbers = torch.tensor(
            [rollout_cost(rollout), len(torch.unique(rollout.group))], dtype=torch.float64
        )
        total, num_problems = reduce_sum(numbers).tolist()
        cost = total / num_problems
        self.cost = 0.5 * (self.cost + cost) if self.cost else cost
        self.max_cost = max(self.max_cost, cost)

    def state_dict(self) -> dict[str, float]:
        return {"cost": self.cost, "most": self.max_cost}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.cost = float(state["cost"])
        self.max_cost = float(state["most"])


def rollout_cost(rollout: Rollout) -> float:
    """Tokens forwarded for a rollout and its update, each common prefix counted once.

    Tokens of groups with differing returns count again in the update, times `UPDATE_COST`.
    """
    is_informative = informative_groups(rollout)[rollout.trajectory].tolist()
    prompts = rollout.observation.tokens.tolist()
    prompt_lengths = rollout.observation.token_mask.sum(1).tolist()
    completions = rollout.trace["tokens"].tolist()
    completion_lengths = rollout.trace.get("mask", rollout.mask).sum(1).tolist()
    forwarded = PrefixTree()
    updated = PrefixTree()
    rows = zip(
        prompts, prompt_lengths, completions, completion_lengths, is_informative, strict=True
    )
    for prompt, prompt_length, completion, length, informative in rows:
        path = [*prompt[:prompt_length], *completion[:length]]
        forwarded.add(path)
        if informative:
            updated.add(path)
    return len(forwarded.tokens) + UPDATE_COST * len(updated.tokens)
