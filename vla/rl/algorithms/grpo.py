"""Group Relative Policy Optimization (Shao 2024, "DeepSeekMath", eq. 3 and 4) and its variants by
setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.ranges import Count, Fraction, NonNegative, Positive
from vla.rl import validation as checks
from vla.rl.batch import Batch, LossOutput, trajectory_batch
from vla.rl.choices import DualClip, EntropyCoefficient, KLEstimator, KLPlacement, Level, Reduction
from vla.rl.group_advantages import group_relative
from vla.rl.losses import clipped_terms, combine, log_ratio_at
from vla.types import ActionScores, Rollout


@dataclass(frozen=True)
class GRPO:
    """max(-A r, -A clip(r)) + beta KL(pi || ref), A = (return - group mean) / (group std + 1e-6).

    The paper: clip .2 on both sides, scale 'std', reduction 'sequence', kl_estimator 'k3' with
    coefficient .04, averaged over all outputs (`keep_equal_groups`). On robots (SimpleVLA-RL): clip
    .2/.28, reduction 'token', no KL. `ratio_level` 'decision' clips the ratio of a whole chunk.
    """

    clip_low: Fraction
    clip_high: NonNegative
    scale: Literal["std", "none"] = "std"
    reduction: Reduction = "sequence"
    max_length: Count | None = None
    ratio_level: Level = "draw"
    dual_clip: DualClip | None = None
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
        checks.check_clip_range(self.clip_low, self.clip_high, self.dual_clip)
        checks.check_one_of("scale", self.scale, ("std", "none"))
        checks.check_reduction(self.reduction, self.max_length)
        checks.check_one_of("ratio_level", self.ratio_level, ("draw", "decision"))
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
        """Group-relative advantages; uninformative groups leave the denominators unless
        `keep_equal_groups`."""
        credit = group_relative(rollout.returns, rollout.group, self.scale, self.keep_equal_groups)
        return trajectory_batch(
            rollout, credit, self.reduction, self.max_length, ref_logprobs, reduce_sum
        )

    def loss(self, batch: Batch, scores: ActionScores) -> LossOutput:
        """Clipped surrogate, KL as a loss, entropy bonus."""
        log_ratio = log_ratio_at(self.ratio_level, scores.logprobs, batch.old_logprobs, batch.mask)
        terms, clipped = clipped_terms(
            log_ratio, batch.advantages, self.clip_low, self.clip_high, self.dual_clip
        )
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
