"""Simple Policy Optimization (Xie 2024): a quadratic price on the ratio instead of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vla.collectives import ReduceSum, single_process
from vla.ranges import NonNegative, Positive
from vla.rl.batch import Batch, LossOutput, trajectory_batch
from vla.rl.choices import KLPlacement
from vla.rl.group_advantages import group_relative
from vla.rl.losses import combine, draw_log_ratio
from vla.types import ActionScores, Rollout


@dataclass(frozen=True)
class SPO:
    """-A r + |A| (r - 1)^2 / (2 epsilon), and KL(pi || ref) as a loss."""

    epsilon: Positive
    kl_coefficient: NonNegative
    needs_values: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = True
    uses_ratio: ClassVar[bool] = True
    kl_placement: ClassVar[KLPlacement | None] = "loss"

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0

    def prepare(
        self,
        rollout: Rollout,
        ref_logprobs: torch.Tensor | None = None,
        reduce_sum: ReduceSum = single_process,
    ) -> Batch:
        credit = group_relative(rollout.returns, rollout.group, "std")
        return trajectory_batch(rollout, credit, "token", None, ref_logprobs, reduce_sum)

    def loss(self, batch: Batch, scores: ActionScores) -> LossOutput:
        ratio = draw_log_ratio(scores.logprobs, batch.old_logprobs, batch.mask).exp()
        price = batch.advantages.abs() * (ratio - 1).square() / (2 * self.epsilon)
        terms = price - batch.advantages * ratio
        never = torch.zeros_like(terms, dtype=torch.bool)
        return combine(
            batch, scores, terms, never, kl_coefficient=self.kl_coefficient, kl_estimator="k3"
        )
