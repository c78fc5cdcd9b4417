"""MaxRL (Tajwar 2026, "Maximum likelihood reinforcement learning"): maximise log E[r] instead
of E[r]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.ranges import Count, Fraction, NonNegative
from vla.rl import validation as checks
from vla.rl.batch import Batch, LossOutput, trajectory_batch
from vla.rl.choices import EntropyCoefficient, KLPlacement, Reduction
from vla.rl.group_advantages import maximum_likelihood
from vla.rl.losses import clipped_terms, combine, draw_log_ratio
from vla.types import ActionScores, Rollout


@dataclass(frozen=True)
class MaxRL:
    """max(-A r, -A clip(r)) with A = (return - group mean) / group mean: a rare success weighs 1 /
    its frequency.

    Returns must not be negative. The clip is PPO's; with one pass over each rollout it is never
    active.
    """

    clip_low: Fraction
    clip_high: NonNegative
    reduction: Reduction = "sequence"
    max_length: Count | None = None
    entropy_coefficient: EntropyCoefficient = 0.0
    needs_reference: ClassVar[bool] = False
    needs_values: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = True
    kl_placement: ClassVar[KLPlacement | None] = None
    uses_ratio: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.check_clip_range(self.clip_low, self.clip_high)
        checks.check_reduction(self.reduction, self.max_length)
        checks.check_penalty(0.0, "k3", self.entropy_coefficient)

    def prepare(
        self,
        rollout: Rollout,
        ref_logprobs: Float[Tensor, "R L"] | None = None,
        reduce_sum: ReduceSum = single_process,
    ) -> Batch:
        """Returns relative to the group mean, in units of the group mean."""
        credit = maximum_likelihood(rollout.returns, rollout.group)
        return trajectory_batch(
            rollout, credit, self.reduction, self.max_length, ref_logprobs, reduce_sum
        )

    def loss(self, batch: Batch, scores: ActionScores) -> LossOutput:
        """Clipped surrogate and entropy bonus."""
        log_ratio = draw_log_ratio(scores.logprobs, batch.old_logprobs, batch.mask)
        terms, clipped = clipped_terms(log_ratio, batch.advantages, self.clip_low, self.clip_high)
        return combine(batch, scores, terms, clipped, entropy_coefficient=self.entropy_coefficient)
