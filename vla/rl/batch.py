"""Training batch of an algorithm, its loss per row, and the weights that normalise a loss.

Every loss is a sum of per-draw terms times `weights`. The weights are fixed over the global batch
before it is split. So micro-batches, gradient accumulation and the number of processes cannot
change the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.collectives import ReduceSum, single_process, sum_counts
from vla.rl.choices import Reduction
from vla.rl.group_advantages import GroupCredit
from vla.types import Observation, Rollout, Trace, map_rows


@dataclass(frozen=True)
class Batch:
    """`R` rows with advantages and weights; both are constants without gradient.

    `weights` [R, L] hold the reduction of policy, KL and entropy terms; an excluded
    row has weight 0. `value_weights` hold the reduction of value terms and have the shape of
    `old_values` and `returns`.
    """

    observation: Observation
    trace: Trace
    old_logprobs: Float[Tensor, "R L"]
    mask: Bool[Tensor, "R L"]
    advantages: Float[Tensor, "R 1"] | Float[Tensor, "R L"]
    weights: Float[Tensor, "R L"]
    ref_logprobs: Float[Tensor, "R L"] | None = None
    old_values: Float[Tensor, "R"] | Float[Tensor, "R L"] | None = None
    returns: Float[Tensor, "R"] | Float[Tensor, "R L"] | None = None
    value_weights: Float[Tensor, "R"] | Float[Tensor, "R L"] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.mask)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `function` to every tensor of the batch."""
        names = [f.name for f in fields(self) if f.name != "metrics"]
        return replace(self, **{name: map_rows(getattr(self, name), function) for name in names})

    def select(self, rows: Int[Tensor, "B"]) -> Batch:
        """Select rows by number; weights keep their value."""
        return self.map(lambda tensor: tensor[rows])

    @property
    def active_rows(self) -> Int[Tensor, "K"]:
        """Numbers of the rows with a gradient; the others need no forward pass."""
        active = (self.weights != 0).any(1)
        if self.value_weights is not None:
            active = active | (self.value_weights.reshape(len(self), -1) != 0).any(1)
        return active.nonzero().squeeze(1)


@dataclass(frozen=True)
class LossOutput:
    """Weighted loss per row, separate for policy and critic.

    Losses per row allow an error to name a non-finite row. `metrics` are sums over draws.
    """

    policy: Float[Tensor, "B"]
    value: Float[Tensor, "B"] | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> Float[Tensor, "B"]:
        return self.policy if self.value is None else self.policy + self.value

    @property
    def loss(self) -> Float[Tensor, ""]:
        return self.rows.sum()


def reduction_weights(
    mask: Bool[Tensor, "R L"],
    trajectory: Int[Tensor, "R"],
    keep: Bool[Tensor, "N"],
    reduction: Reduction,
    max_length: int | None = None,
    reduce_sum: ReduceSum = single_process,
) -> Float[Tensor, "R L"]:
    """Weights that turn a sum of per-draw terms into a reduction over the global batch.

    A sequence is a trajectory (all its decisions); `keep` marks the trajectories that count.
    token     1 / number of counted draws                                   (DAPO, Yu 2025, eq. 8)
    sequence  1 / (sequences x counted draws of this sequence)              (GRPO, Shao 2024, eq. 3)
    constant  1 / (sequences x max_length)                                  (Dr. GRPO, Liu 2025)
    """
    counted = (mask & keep[trajectory].unsqueeze(1)).double()
    lengths = torch.zeros(len(keep), dtype=torch.float64).index_add(0, trajectory, counted.sum(1))
    totals = reduce_sum(torch.stack([counted.sum(), (lengths > 0).sum().double()]))
    num_draws, num_sequences = totals.clamp(min=1).unbind()
    if reduction == "token":
        weights = counted / num_draws
    elif reduction == "sequence":
        weights = counted / (num_sequences * lengths.clamp(min=1)[trajectory].unsqueeze(1))
    else:
        assert max_length is not None, (
            "reduction 'constant' needs max_length; settings are checked where they are made"
        )
        weights = counted / (num_sequences * max_length)
    return weights.float()


def trajectory_batch(
    rollout: Rollout,
    credit: GroupCredit,
    reduction: Reduction,
    max_length: int | None = None,
    ref_logprobs: Float[Tensor, "R L"] | None = None,
    reduce_sum: ReduceSum = single_process,
) -> Batch:
    """Make a batch where all draws of a trajectory share its advantage (group methods without a
    critic)."""
    return Batch(
        observation=rollout.observation,
        trace=rollout.trace,
        old_logprobs=rollout.logprobs,
        mask=rollout.mask,
        advantages=credit.advantages[rollout.trajectory].unsqueeze(1),
        weights=reduction_weights(
            rollout.mask, rollout.trajectory, credit.keep, reduction, max_length, reduce_sum
        ),
        ref_logprobs=ref_logprobs,
        metrics=sum_counts(credit.metrics, reduce_sum),
    )
