"""CISPO (MiniMax 2025, "MiniMax-M1", eq. 4 and 5): clip the importance weight, not the
gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.ranges import Fraction, NonNegative
from vla.rl import validation as checks
from vla.rl.batch import Batch, LossOutput, trajectory_batch
from vla.rl.choices import EntropyCoefficient, KLPlacement
from vla.rl.group_advantages import group_relative
from vla.rl.losses import cispo_terms, combine, draw_log_ratio
from vla.types import ActionScores, Rollout


@dataclass(frozen=True)
class CISPO:
    """-sg(clip(r, 1 - low, 1 + high)) A log pi over all counted draws alike, A as in GRPO, no KL.

    Rare draws that a clip on the loss would silence keep a bounded gradient. The paper sets no
    lower limit: `clip_low`
    1. `clip_high` is a distance from 1 here; TRL's `epsilon_high` is the limit itself.
    """

    clip_low: Fraction
    clip_high: NonNegative
    entropy_coefficient: EntropyCoefficient = 0.0
    needs_reference: ClassVar[bool] = False
    needs_values: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = True
    kl_placement: ClassVar[KLPlacement | None] = None
    uses_ratio: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.check_clip_range(self.clip_low, self.clip_high)
        checks.check_penalty(0.0, "k3", self.entropy_coefficient)

    def prepare(
        self,
        rollout: Rollout,
        ref_logprobs: Float[Tensor, "R L"] | None = None,
        reduce_sum: ReduceSum = single_process,
    ) -> Batch:
        """Group-relative advantages, token-level weights."""
        credit = group_relative(rollout.returns, rollout.group, "std")
        return trajectory_batch(rollout, credit, "token", None, ref_logprobs, reduce_sum)

    def loss(self, batch: Batch, scores: ActionScores) -> LossOutput:
        """Weighted REINFORCE and entropy bonus."""
        log_ratio = draw_log_ratio(scores.logprobs, batch.old_logprobs, batch.mask)
        terms, clipped = cispo_terms(
            scores.logprobs, log_ratio, batch.advantages, batch.mask, self.clip_low, self.clip_high
        )
        return combine(batch, scores, terms, clipped, entropy_coefficient=self.entropy_coefficient)
