"""Selection of trajectories: merged rollouts, dropped groups, dynamic sampling (Yu 2025, DAPO, eq.
11)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vla.rl.group_advantages import group_statistics
from vla.types import Rollout, concatenate_rows, map_rows


def keep_trajectories(rollout: Rollout, keep: Bool[Tensor, "N"]) -> Rollout:
    """A rollout with some of the trajectories, renumbered in the same order."""
    rows = keep[rollout.trajectory].nonzero().squeeze(1)
    number = keep.long().cumsum(0) - 1

    def take(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[rows]

    def take_trajectories(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[keep]

    return replace(
        rollout,
        observation=map_rows(rollout.observation, lambda tensor: tensor[rows]),
        trace=map_rows(rollout.trace, lambda tensor: tensor[rows]),
        logprobs=rollout.logprobs[rows],
        mask=rollout.mask[rows],
        rewards=rollout.rewards[rows],
        trajectory=number[rollout.trajectory[rows]],
        version=rollout.version[rows],
        values=take(rollout.values),
        terminated=rollout.terminated[keep],
        truncated=rollout.truncated[keep],
        group=rollout.group[keep],
        success=take_trajectories(rollout.success),
        final_values=take_trajectories(rollout.final_values),
        action=take(rollout.action),
        episodes={name: values[keep] for name, values in rollout.episodes.items()},
    )


def mask_trajectories(rollout: Rollout, learned: Bool[Tensor, "N"]) -> Rollout:
    """Exclude the draws of the other trajectories from the loss.

    They stay in the statistics of their groups only (DAPO's overlong filter; TRL's
    mask_truncated_completions).
    """
    return replace(rollout, mask=rollout.mask & learned[rollout.trajectory][:, None])


def merge_rollouts(rollouts: list[Rollout]) -> Rollout:
    """Concatenate rollouts; trajectories and groups are renumbered, and metrics add up."""
    first = rollouts[0]
    num_before = torch.tensor([0, *[r.num_trajectories for r in rollouts]]).cumsum(0)
    groups = []
    next_group = 0
    for rollout in rollouts:
        names, numbers = torch.unique(rollout.group, return_inverse=True)
        groups.append(numbers + next_group)
        next_group += len(names)

    def join(name: str) -> Tensor | None:
        return (
            None
            if getattr(first, name) is None
            else torch.cat([getattr(r, name) for r in rollouts])
        )

    joined = (
        *(
            "logprobs",
            "mask",
            "rewards",
            "version",
            "values",
            "terminated",
            "truncated",
            "success",
            "final_values",
        ),
        "action",
    )
    measured = set(first.episodes).intersection(*[r.episodes for r in rollouts])
    numbers = set(first.metrics).intersection(*[r.metrics for r in rollouts])
    return replace(
        first,
        observation=concatenate_rows([r.observation for r in rollouts]),
        trace=concatenate_rows([r.trace for r in rollouts]),
        trajectory=torch.cat([r.trajectory + num_before[i] for i, r in enumerate(rollouts)]),
        group=torch.cat(groups),
        metrics={name: sum(r.metrics[name] for r in rollouts) for name in sorted(numbers)},
        exact=all(r.exact for r in rollouts),
        episodes={
            name: torch.cat([r.episodes[name] for r in rollouts]) for name in sorted(measured)
        },
        **{name: join(name) for name in joined},  # type: ignore[arg-type]
    )


def informative_groups(
    rollout: Rollout, min_success: float | None = None, max_success: float | None = None
) -> Bool[Tensor, "N"]:
    """Mask of the trajectories in groups with at least two scorable, unequal returns.

    `min_success` and `max_success` also bound a group's success rate (SimpleVLA-RL: .1 and .9).

    Raises:
        ValueError: for such a bound and a rollout without success.
    """
    statistics = group_statistics(rollout.returns, rollout.group)
    keep = statistics.scorable & statistics.varies
    if min_success is not None or max_success is not None:
        if rollout.success is None:
            raise ValueError(
                f"min_success ({min_success}) and max_success ({max_success}) need rollouts with "
                "success"
            )
        share = group_statistics(rollout.success, rollout.group).mean
        keep &= share >= (0.0 if min_success is None else min_success) - 1e-9
        keep &= share <= (1.0 if max_success is None else max_success) + 1e-9
    return keep


def collect_informative(
    sample: Callable[[int], Rollout],
    num_groups: int,
    max_resamples: int,
    *,
    informative: Callable[[Rollout], Bool[Tensor, "N"]] = informative_groups,
) -> Rollout:
    """Sample groups, drop uninformative ones, and resample until `num_groups` are left.

    `sample(n)` returns a rollout of `n` new groups. Groups beyond `num_groups` are dropped. After
    `max_resamples` resamples the result has fewer groups. Without any informative group it is the
    last rollout, so that its metrics are not lost; the algorithm gives its groups no weight.
    Metrics: groups_sampled, groups_kept, refills.

    Raises:
        ValueError: for `num_groups` below 1 or a negative `max_resamples`.
    """
    if num_groups < 1 or max_resamples < 0:
        raise ValueError(
            f"num_groups ({num_groups}) must be at least 1 and max_resamples ({max_resamples}) at "
            "least 0"
        )
    rollouts: list[Rollout] = []
    num_sampled = num_kept = 0
    refills = -1
    last = None
    while num_kept < num_groups and refills < max_resamples:
        refills += 1
        last = sample(num_groups - num_kept)
        num_sampled += len(torch.unique(last.group))
        keep = informative(last)
        if bool(keep.any()):
            rollouts.append(keep_trajectories(last, keep))
            num_kept += len(torch.unique(rollouts[-1].group))
    assert last is not None
    merged = merge_rollouts(rollouts) if rollouts else last
    merged = keep_trajectories(merged, first_groups(merged.group, num_groups))
    metrics = {
        **merged.metrics,
        "groups_sampled": float(num_sampled),
        "groups_kept": float(min(num_kept, num_groups)),
        "refills": float(refills),
    }
    return replace(merged, metrics=metrics)


def first_groups(group: Int[Tensor, "N"], num_groups: int) -> Bool[Tensor, "N"]:
    """Mask of the trajectories in the first `num_groups` groups by number."""
    return torch.unique(group, return_inverse=True)[1] < num_groups
