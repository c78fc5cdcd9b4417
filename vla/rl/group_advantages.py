"""Group advantages of trajectories from one start: group-relative, leave-one-out, maximum
likelihood.

A trajectory with a NaN return is unscorable. A group with one scorable trajectory, or with equal
returns, is uninformative. Their advantages are 0, and `keep` excludes them from every denominator.
With `keep_equal_groups` the scorable ones stay, so that KL and entropy act on them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class GroupCredit:
    """Advantages per trajectory, the mask of those that count, and counts of the others by
    reason."""

    advantages: Float[Tensor, "N"]
    keep: Bool[Tensor, "N"]
    metrics: dict[str, float]


@dataclass(frozen=True)
class GroupStatistics:
    """Moments over the scorable trajectories of each group, repeated per trajectory [N].

    Returns are float64, with 0 in place of NaN.
    """

    returns: Float[Tensor, "N"]
    scorable: Bool[Tensor, "N"]
    count: Float[Tensor, "N"]
    mean: Float[Tensor, "N"]
    standard_deviation: Float[Tensor, "N"]
    varies: Bool[Tensor, "N"]
    metrics: dict[str, float]


def group_statistics(returns: Float[Tensor, "N"], group: Int[Tensor, "N"]) -> GroupStatistics:
    """Count, mean and unbiased standard deviation per group, and a mask of groups with unequal
    returns."""
    scorable = ~returns.isnan()
    exact = torch.where(scorable, returns, torch.zeros_like(returns)).double()
    index = torch.unique(group, return_inverse=True)[1]
    num_groups = int(index.max()) + 1 if len(index) else 0

    def total(values: Tensor) -> Tensor:
        return torch.zeros(num_groups, dtype=torch.float64).index_add(0, index, values.double())

    count = total(scorable)
    mean = total(exact) / count.clamp(min=1)
    centred = torch.where(scorable, exact - mean[index], torch.zeros_like(exact))
    deviation = (total(centred.square()) / (count - 1).clamp(min=1)).sqrt()
    empty = torch.full((num_groups,), torch.inf, dtype=torch.float64)
    lowest = empty.scatter_reduce(0, index, torch.where(scorable, exact, torch.inf), "amin")
    highest = (-empty).scatter_reduce(0, index, torch.where(scorable, exact, -torch.inf), "amax")
    varies = highest > lowest
    metrics = {
        "num_groups": float(num_groups),
        "groups_singleton": float((count == 1).sum()),
        "groups_without_variance": float(((count > 1) & ~varies).sum()),
        "trajectories_unscorable": float((~scorable).sum()),
    }
    return GroupStatistics(
        exact, scorable, count[index], mean[index], deviation[index], varies[index], metrics
    )


def _credit(
    statistics: GroupStatistics, advantages: Float[Tensor, "N"], keep_equal_groups: bool = False
) -> GroupCredit:
    informative = statistics.scorable & statistics.varies
    keep = statistics.scorable if keep_equal_groups else informative
    return GroupCredit(
        torch.where(informative, advantages, torch.zeros_like(advantages)).float(),
        keep,
        statistics.metrics,
    )


def group_relative(
    returns: Float[Tensor, "N"],
    group: Int[Tensor, "N"],
    scale: Literal["std", "none"],
    keep_equal_groups: bool = False,
) -> GroupCredit:
    """(r - mean) / (std + 1e-6) with the unbiased std (Shao 2024, GRPO); r - mean with scale 'none'
    (Liu 2025, Dr. GRPO).

    [1, 0, 0, 0] gives [1.5, -.5, -.5, -.5] and [.75, -.25, -.25, -.25].
    """
    statistics = group_statistics(returns, group)
    centred = statistics.returns - statistics.mean
    advantages = centred / (statistics.standard_deviation + 1e-6) if scale == "std" else centred
    return _credit(statistics, advantages, keep_equal_groups)


def leave_one_out(returns: Float[Tensor, "N"], group: Int[Tensor, "N"]) -> GroupCredit:
    """r minus the mean of the *other* trajectories of its group (Kool 2019; Ahmadian 2024): [1,
    -1/3, -1/3, -1/3].
    """
    statistics = group_statistics(returns, group)
    others = statistics.count / (statistics.count - 1).clamp(min=1)
    return _credit(statistics, (statistics.returns - statistics.mean) * others)


def maximum_likelihood(returns: Float[Tensor, "N"], group: Int[Tensor, "N"]) -> GroupCredit:
    """(r - mean) / mean (MaxRL): the gradient of log E[r] instead of E[r], for r >= 0.

    [1, 0, 0, 0] gives [3, -1, -1, -1].

    Raises:
        ValueError: for a negative return.
    """
    if bool((returns < 0).any()):
        raise ValueError(
            f"a return ({float(returns.nan_to_num(0).min())}) is negative: algorithm maxrl reads "
            "returns as "
            "probabilities of success. Use rewards in [0, 1], or another algorithm"
        )
    statistics = group_statistics(returns, group)
    mean = torch.where(statistics.mean > 0, statistics.mean, torch.ones_like(statistics.mean))
    return _credit(statistics, (statistics.returns - statistics.mean) / mean)
