"""REINFORCE++ (Hu 2025): PPO's clip without a critic, advantages normalised over the global
batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vla.collectives import ReduceSum, single_process, sum_counts
from vla.ranges import Fraction, NonNegative
from vla.rl import validation as checks
from vla.rl.advantages import rewards_to_go, whiten
from vla.rl.batch import Batch, LossOutput, reduction_weights
from vla.rl.choices import Along, EntropyCoefficient, KLPlacement
from vla.rl.group_advantages import group_statistics
from vla.rl.losses import clipped_terms, combine, draw_log_ratio
from vla.rl.rewards import rewards_with_kl, to_advantages
from vla.types import ActionScores, Rollout


@dataclass(frozen=True)
class REINFORCEPlusPlus:
    """max(-A r, -A clip(r)) over all counted draws alike, A the whitened reward-to-go.

    baseline 'none': k1 KL in the reward of every draw; trajectories of one start need no group.
    baseline 'group': the group's mean return is subtracted first, and KL is a k2 loss ("REINFORCE++
    with baseline"). Rewards-to-go continue through rows that the policy did not choose; several
    peers restart there.
    """

    clip_low: Fraction
    clip_high: NonNegative
    gamma: Fraction
    along: Along
    baseline: Literal["none", "group"] = "none"
    kl_coefficient: NonNegative = 0.0
    entropy_coefficient: EntropyCoefficient = 0.0
    needs_values: ClassVar[bool] = False
    uses_ratio: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.check_clip_range(self.clip_low, self.clip_high)
        checks.check_discount(self.gamma)
        checks.check_one_of("along", self.along, ("decision", "draw"))
        checks.check_one_of("baseline", self.baseline, ("none", "group"))
        checks.check_penalty(self.kl_coefficient, "k1", self.entropy_coefficient)

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0

    @property
    def needs_groups(self) -> bool:
        return self.baseline == "group"

    @property
    def kl_placement(self) -> KLPlacement:
        return "loss" if self.baseline == "group" else "reward"

    def prepare(
        self,
        rollout: Rollout,
        ref_logprobs: Float[Tensor, "R L"] | None = None,
        reduce_sum: ReduceSum = single_process,
    ) -> Batch:
        """Rewards-to-go, minus the group's mean return with baseline 'group', whitened over the
        global batch."""
        in_reward = self.kl_coefficient if self.baseline == "none" else 0.0
        credit = rewards_with_kl(rollout, self.along, ref_logprobs, in_reward, "k1")
        keep = credit.keep
        counted = credit.counted
        metrics = credit.metrics
        raw = rewards_to_go(
            credit.rewards, counted, rollout.trajectory, rollout.num_trajectories, self.gamma
        )
        if self.baseline == "group":
            statistics = group_statistics(rollout.returns, rollout.group)
            keep = statistics.scorable & statistics.varies
            metrics = statistics.metrics
            rows = rollout.trajectory if raw.dim() == 1 else rollout.trajectory.unsqueeze(1)
            counted = counted & keep[rows]
            raw = torch.where(
                counted, raw - statistics.mean[rows].to(raw.dtype), torch.zeros_like(raw)
            )
        return Batch(
            observation=rollout.observation,
            trace=rollout.trace,
            old_logprobs=rollout.logprobs,
            mask=rollout.mask,
            advantages=to_advantages(whiten(raw, counted, reduce_sum=reduce_sum)),
            weights=reduction_weights(
                rollout.mask, rollout.trajectory, keep, "token", None, reduce_sum
            ),
            ref_logprobs=ref_logprobs,
            metrics=sum_counts(metrics, reduce_sum),
        )

    def loss(self, batch: Batch, scores: ActionScores) -> LossOutput:
        """Clipped surrogate, k2 KL with the group baseline, entropy bonus."""
        log_ratio = draw_log_ratio(scores.logprobs, batch.old_logprobs, batch.mask)
        terms, clipped = clipped_terms(log_ratio, batch.advantages, self.clip_low, self.clip_high)
        return combine(
            batch,
            scores,
            terms,
            clipped,
            kl_coefficient=self.kl_coefficient if self.baseline == "group" else 0.0,
            kl_estimator="k2",
            entropy_coefficient=self.entropy_coefficient,
        )
