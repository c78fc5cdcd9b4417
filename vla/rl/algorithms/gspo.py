"""Group Sequence Policy Optimization (Zheng 2025): ratio and clip of the whole sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.ranges import Fraction, NonNegative, Positive
from vla.rl import validation as checks
from vla.rl.batch import Batch, LossOutput, trajectory_batch
from vla.rl.choices import EntropyCoefficient, KLEstimator, KLPlacement
from vla.rl.group_advantages import group_relative
from vla.rl.losses import clipped_terms, combine, mean_log_ratio
from vla.types import ActionScores, Rollout


@dataclass(frozen=True)
class GSPO:
    """max(-A s, -A clip(s, 1 - low, 1 + high)), s = exp(mean over draws of log pi - log pi_old)
    (eq. 5 to 7), A as in GRPO.

    The gradient flows through the mean log-ratio. A sequence is one decision: one answer, or one
    chunk of actions. The paper: clip 3e-4/4e-4 and no KL; a mean over draws moves far less than a
    single draw, so usual clips hold nothing.
    """

    clip_low: Fraction
    clip_high: NonNegative
    kl_coefficient: NonNegative = 0.0
    kl_estimator: KLEstimator = "k3"
    kl_cap: Positive | None = None
    entropy_coefficient: EntropyCoefficient = 0.0
    keep_equal_groups: bool = False
    needs_values: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = True
    kl_placement: ClassVar[KLPlacement | None] = "loss"
    uses_ratio: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.check_clip_range(self.clip_low, self.clip_high)
        checks.check_penalty(self.kl_coefficient, self.kl_estimator, self.entropy_coefficient)
        checks.check_kl_cap(self.kl_cap, self.kl_coefficient)

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0

    def prepare(
        self,
        rollout: Rollout,
        ref_logprobs: Float[Tensor, "R L"] | None = None,
        reduce_sum: ReduceSum = single_process,
    ) -> Batch:
        """Group-relative advantages, every trajectory alike."""
        credit = group_relative(rollout.returns, rollout.group, "std", self.keep_equal_groups)
        return trajectory_batch(rollout, credit, "sequence", None, ref_logprobs, reduce_sum)

    def loss(self, batch: Batch, scores: ActionScores) -> LossOutput:
        """Clipped surrogate of the sequence ratio, KL as a loss, entropy bonus."""
        log_ratio = mean_log_ratio(scores.logprobs, batch.old_logprobs, batch.mask)
        terms, clipped = clipped_terms(log_ratio, batch.advantages, self.clip_low, self.clip_high)
        return combine(
            batch,
            scores,
            terms,
            clipped,
            kl_coefficient=self.kl_coefficient,
            kl_estimator=self.kl_estimator,
            kl_cap=self.kl_cap,
            entropy_coefficient=self.entropy_coefficient,
        )
