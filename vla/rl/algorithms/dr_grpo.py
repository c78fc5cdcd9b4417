"""Dr. GRPO (Liu 2025, "Understanding R1-Zero-like training", section 3.2): GRPO without its two
biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.ranges import Count, Fraction, NonNegative
from vla.rl import validation as checks
from vla.rl.batch import Batch, LossOutput, trajectory_batch
from vla.rl.choices import EntropyCoefficient, KLPlacement
from vla.rl.group_advantages import group_relative
from vla.rl.losses import clipped_terms, combine, draw_log_ratio
from vla.types import ActionScores, Rollout


@dataclass(frozen=True)
class DrGRPO:
    """max(-A r, -A clip(r)) with A = return - group mean, summed over draws and divided by
    sequences x `max_length`.

    No standard deviation (it favours starts that are nearly always or nearly never solved) and no
    division by the length of the answer (it favours long failures). `max_length` is the same for
    all, in every iteration; None: the most draws a decision can have, which for text is the length
    limit.
    """

    clip_low: Fraction
    clip_high: NonNegative
    max_length: Count | None = None
    entropy_coefficient: EntropyCoefficient = 0.0
    needs_reference: ClassVar[bool] = False
    needs_values: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = True
    kl_placement: ClassVar[KLPlacement | None] = None
    uses_ratio: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.check_clip_range(self.clip_low, self.clip_high)
        if self.max_length is not None:
            checks.check_reduction("constant", self.max_length)
        checks.check_penalty(0.0, "k3", self.entropy_coefficient)

    def prepare(
        self,
        rollout: Rollout,
        ref_logprobs: Float[Tensor, "R L"] | None = None,
        reduce_sum: ReduceSum = single_process,
    ) -> Batch:
        """Centred returns, constant normaliser."""
        credit = group_relative(rollout.returns, rollout.group, "none")
        length = rollout.mask.shape[1] if self.max_length is None else self.max_length
        return trajectory_batch(rollout, credit, "constant", length, ref_logprobs, reduce_sum)

    def loss(self, batch: Batch, scores: ActionScores) -> LossOutput:
        """Clipped surrogate and entropy bonus."""
        log_ratio = draw_log_ratio(scores.logprobs, batch.old_logprobs, batch.mask)
        terms, clipped = clipped_terms(log_ratio, batch.advantages, self.clip_low, self.clip_high)
        return combine(batch, scores, terms, clipped, entropy_coefficient=self.entropy_coefficient)
