"""DAPO (Yu 2025): clip-higher, token-level normalisation, overlong shaping. Dynamic sampling is in
`vla.rl.dynamic_sampling`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.ranges import Count, CountOrZero, Fraction, NonNegative
from vla.rl import validation as checks
from vla.rl.batch import Batch, LossOutput, trajectory_batch
from vla.rl.choices import EntropyCoefficient, KLPlacement
from vla.rl.group_advantages import group_relative
from vla.rl.losses import clipped_terms, combine, draw_log_ratio
from vla.types import ActionScores, Rollout


def overlong_penalty(
    lengths: Float[Tensor, "N"], max_length: int, buffer: int
) -> Float[Tensor, "N"]:
    """0 up to `max_length - buffer` draws, then linear down to -1 at `max_length` and beyond (eq.
    13)."""
    return ((max_length - buffer - lengths) / buffer).clamp(-1.0, 0.0)


@dataclass(frozen=True)
class DAPO:
    """max(-A r, -A clip(r, 1 - low, 1 + high)) over all counted draws alike, A as in GRPO, no KL
    (eq. 8 to 12).

    The paper: clip .2/.28, `max_length` 20480 with `overlong_buffer` 4096. A buffer of 0 switches
    the shaping off (usual for robots), and `max_length` is then null.
    """

    clip_low: Fraction
    clip_high: NonNegative
    overlong_buffer: CountOrZero = 0
    max_length: Count | None = None
    entropy_coefficient: EntropyCoefficient = 0.0
    needs_reference: ClassVar[bool] = False
    needs_values: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = True
    kl_placement: ClassVar[KLPlacement | None] = None
    uses_ratio: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.check_clip_range(self.clip_low, self.clip_high)
        checks.check_penalty(0.0, "k3", self.entropy_coefficient)
        checks.check_at_least(
            "overlong_buffer",
            self.overlong_buffer,
            0,
            "it counts draws; 0 switches the shaping off",
        )
        if self.overlong_buffer and (
            self.max_length is None or self.max_length < self.overlong_buffer
        ):
            raise ValueError(
                f"max_length ({checks.format_value(self.max_length)}) must be at least "
                f"overlong_buffer ({self.overlong_buffer}): "
                "it is the most draws a trajectory can have"
            )
        if not self.overlong_buffer and self.max_length is not None:
            raise ValueError(
                f"max_length ({self.max_length}) has no meaning while overlong_buffer is 0: set "
                "it to null"
            )

    def prepare(
        self,
        rollout: Rollout,
        ref_logprobs: Float[Tensor, "R L"] | None = None,
        reduce_sum: ReduceSum = single_process,
    ) -> Batch:
        """Group-relative advantages of the shaped returns, token-level weights."""
        returns = rollout.returns
        if self.overlong_buffer:
            assert self.max_length is not None
            lengths = torch.zeros_like(returns).index_add(
                0, rollout.trajectory, rollout.mask.sum(1).to(returns.dtype)
            )
            returns = returns + overlong_penalty(lengths, self.max_length, self.overlong_buffer)
        credit = group_relative(returns, rollout.group, "std")
        return trajectory_batch(rollout, credit, "token", None, ref_logprobs, reduce_sum)

    def loss(self, batch: Batch, scores: ActionScores) -> LossOutput:
        """Clipped surrogate and entropy bonus."""
        log_ratio = draw_log_ratio(scores.logprobs, batch.old_logprobs, batch.mask)
        terms, clipped = clipped_terms(log_ratio, batch.advantages, self.clip_low, self.clip_high)
        return combine(batch, scores, terms, clipped, entropy_coefficient=self.entropy_coefficient)
