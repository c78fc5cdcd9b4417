"""REINFORCE leave-one-out (Kool 2019; Ahmadian 2024, "Back to basics"): one action is a
whole answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.ranges import Fraction, NonNegative
from vla.rl import validation as checks
from vla.rl.batch import Batch, LossOutput, trajectory_batch
from vla.rl.choices import EntropyCoefficient, KLPlacement
from vla.rl.group_advantages import leave_one_out
from vla.rl.losses import clipped_terms, combine, decision_log_ratio
from vla.rl.rewards import rewards_with_kl
from vla.types import ActionScores, Rollout


@dataclass(frozen=True)
class RLOO:
    """max(-A r, -A clip(r)), r the ratio of a whole decision, A = return - beta KL - its mean
    over the other trajectories.

    KL is k1 summed over the trajectory's draws, in the reward. At ratio 1 the gradient is
    REINFORCE's on the decision's log-prob (the sum over its draws), averaged over trajectories.
    """

    clip_low: Fraction
    clip_high: NonNegative
    kl_coefficient: NonNegative = 0.0
    entropy_coefficient: EntropyCoefficient = 0.0
    needs_values: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = True
    kl_placement: ClassVar[KLPlacement | None] = "reward"
    uses_ratio: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.check_clip_range(self.clip_low, self.clip_high)
        checks.check_penalty(self.kl_coefficient, "k1", self.entropy_coefficient)

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0

    def prepare(
        self,
        rollout: Rollout,
        ref_logprobs: Float[Tensor, "R L"] | None = None,
        reduce_sum: ReduceSum = single_process,
    ) -> Batch:
        """Leave-one-out advantages; each decision weighs 1 / number of trajectories, spread over
        its draws."""
        rewards = rewards_with_kl(rollout, "decision", ref_logprobs, self.kl_coefficient, "k1")
        returns = torch.zeros(rollout.num_trajectories).index_add(
            0, rollout.trajectory, rewards.rewards
        )
        credit = leave_one_out(torch.where(rewards.keep, returns, torch.nan), rollout.group)
        batch = trajectory_batch(rollout, credit, "constant", 1, ref_logprobs, reduce_sum)
        return replace(batch, weights=batch.weights / batch.mask.sum(1, keepdim=True).clamp(min=1))

    def loss(self, batch: Batch, scores: ActionScores) -> LossOutput:
        """Clipped surrogate of the decision's ratio and entropy bonus (mean over a decision's
        draws)."""
        log_ratio = decision_log_ratio(scores.logprobs, batch.old_logprobs, batch.mask)
        terms, clipped = clipped_terms(log_ratio, batch.advantages, self.clip_low, self.clip_high)
        return combine(batch, scores, terms, clipped, entropy_coefficient=self.entropy_coefficient)
