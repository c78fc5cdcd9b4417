"""Rewards per decision or draw with the KL penalty, for PPO, REINFORCE and REINFORCE++."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.rl.advantages import place_rewards
from vla.rl.batch import Batch
from vla.rl.choices import Along, KLEstimator
from vla.rl.kl import masked_kl
from vla.rl.losses import value_terms
from vla.types import ActionScores, Rollout


@dataclass(frozen=True)
class PositionRewards:
    """Rewards per position ([R] along decisions, [R, L] along draws), with masks of the positions
    and trajectories that count.
    """

    rewards: Float[Tensor, "R *L"]
    counted: Bool[Tensor, "R *L"]
    keep: Bool[Tensor, "N"]
    metrics: dict[str, float]


def rewards_with_kl(
    rollout: Rollout,
    along: Along,
    ref_logprobs: Float[Tensor, "R L"] | None = None,
    kl_coefficient: float = 0.0,
    kl_estimator: KLEstimator = "k1",
) -> PositionRewards:
    """r - beta KL at every position (Ziegler 2019, eq. 2). A trajectory with a NaN reward is
    excluded."""
    keep = ~rollout.returns.isnan()
    kept_rows = keep[rollout.trajectory]
    rewards = torch.where(kept_rows, rollout.rewards, torch.zeros_like(rollout.rewards))
    penalty = None
    if kl_coefficient:
        assert ref_logprobs is not None, (
            "update() refuses an algorithm with a KL penalty and no reference"
        )
        penalty = kl_coefficient * masked_kl(
            rollout.logprobs, ref_logprobs, rollout.mask, kl_estimator
        )
    if along == "draw":
        counted = rollout.mask & kept_rows.unsqueeze(1)
        placed = place_rewards(rewards, rollout.mask)
        rewards = placed if penalty is None else placed - penalty
    else:
        counted = rollout.mask.any(1) & kept_rows
        rewards = rewards if penalty is None else rewards - penalty.sum(1)
    return PositionRewards(
        rewards, counted, keep, {"trajectories_unscorable": float((~keep).sum())}
    )


def trajectory_kl(
    rollout: Rollout, ref_logprobs: Float[Tensor, "R L"], reduce_sum: ReduceSum = single_process
) -> float:
    """Mean over trajectories of the summed k1 estimate of KL(pi || ref), in nats: the input of
    `AdaptiveKL`.
    """
    total = masked_kl(rollout.logprobs, ref_logprobs, rollout.mask, "k1").double().sum()
    count = torch.tensor(float(rollout.num_trajectories), dtype=torch.float64)
    total, count = reduce_sum(torch.stack([total, count])).unbind()
    return float(total / count.clamp(min=1))


def explained_variance(
    values: Float[Tensor, "R *L"],
    returns: Float[Tensor, "R *L"],
    counted: Bool[Tensor, "R *L"],
    reduce_sum: ReduceSum = single_process,
) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 a constant one; NaN where
    returns do not vary.
    """
    target = returns[counted].double()
    error = (returns - values)[counted].double()
    sums = torch.stack(
        [torch.ones_like(target), target, target.square(), error, error.square()]
    ).sum(1)
    count, target_sum, target_squares, error_sum, error_squares = reduce_sum(sums).tolist()
    spread = target_squares - target_sum**2 / max(count, 1.0)
    residual = error_squares - error_sum**2 / max(count, 1.0)
    return 1 - residual / spread if spread > 1e-12 * max(target_squares, 1e-12) else float("nan")


def position_weights(
    counted: Bool[Tensor, "R *L"], reduce_sum: ReduceSum = single_process
) -> Float[Tensor, "R *L"]:
    """1 / number of counted positions of the global batch, 0 elsewhere."""
    total = reduce_sum(counted.sum().double()).clamp(min=1)
    return (counted.double() / total).float()


def to_advantages(values: Float[Tensor, "R *L"]) -> Float[Tensor, "R _"]:
    """Reshape [R] (along decisions) to [R, 1]; [R, L] (along draws) stays."""
    return values.unsqueeze(1) if values.dim() == 1 else values


def critic_loss_rows(
    batch: Batch, scores: ActionScores, value_clip: float | None
) -> Float[Tensor, "B"]:
    """Weighted value loss per row.

    Raises:
        ValueError: for scores without values.
    """
    if scores.values is None:
        raise ValueError(
            "scores.values (null): the policy acted with a critic but scores without one"
        )
    assert batch.returns is not None
    assert batch.old_values is not None
    assert batch.value_weights is not None
    terms = value_terms(scores.values, batch.old_values, batch.returns, value_clip)
    weighted = batch.value_weights * terms.where(batch.value_weights != 0, 0.0)
    return weighted if weighted.dim() == 1 else weighted.sum(1)
