"""Data types shared by policies, environments and algorithms.

Every policy acts in *draws*: text tokens, action tokens or denoising steps. A row is one decision
of `L` draws. The reinforcement-learning core uses log-probabilities, masks, rewards, values and
group ids. It never reads a trace.

Shapes: `B` rows, `L` draws a decision, `N` trajectories, `n` text tokens, `h`, `w` pixels, `s`
proprioceptive values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Trace = Mapping[str, Tensor]
"""Tensors a policy needs to score its own draws again. The first dimension is the row."""

StateDict = dict[str, Any]
"""Nested state of a part of a run: tensors and plain values (`vla.training.state_files`)."""

T = TypeVar("T")


def map_rows(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """Apply `function` to every tensor of a tensor, mapping, dataclass or None; the structure
    stays."""
    if value is None:
        return None  # type: ignore[return-value]
    if isinstance(value, Tensor):
        return function(value)  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {key: map_rows(item, function) for key, item in value.items()}  # type: ignore[return-value]
    names = [f.name for f in fields(value) if isinstance(getattr(value, f.name), (Tensor, Mapping))]  # type: ignore[arg-type]
    return replace(value, **{name: map_rows(getattr(value, name), function) for name in names})  # type: ignore[type-var]


def concatenate_rows(values: list[T]) -> T:
    """Concatenate equal structures along their rows. Tensors must agree in every other
    dimension."""
    first = values[0]
    if first is None:
        return None  # type: ignore[return-value]
    if isinstance(first, Tensor):
        return torch.cat(values)  # type: ignore[arg-type,return-value]
    if isinstance(first, Mapping):
        return {key: concatenate_rows([v[key] for v in values]) for key in first}  # type: ignore[index,return-value]
    names = [f.name for f in fields(first) if isinstance(getattr(first, f.name), (Tensor, Mapping))]  # type: ignore[arg-type]
    return replace(
        first, **{name: concatenate_rows([getattr(v, name) for v in values]) for name in names}
    )  # type: ignore[type-var]


@dataclass(frozen=True)
class Observation:
    """Input of a policy.

    `images` are uint8 RGB. `tokens` are the instruction or prompt, right-padded. `label_mask` marks
    the tokens of an advantage label (None: there are none); only heads attend to them.
    """

    images: Mapping[str, UInt8[Tensor, "B h w 3"]]
    proprio: Float[Tensor, "B s"] | None
    tokens: Int[Tensor, "B n"]
    token_mask: Bool[Tensor, "B n"]
    label_mask: Bool[Tensor, "B n"] | None = None

    @property
    def instruction_mask(self) -> Bool[Tensor, "B n"]:
        """Mask of the tokens that are neither padding nor label."""
        return self.token_mask if self.label_mask is None else self.token_mask & ~self.label_mask


@dataclass(frozen=True)
class Decision:
    """Output of a policy: the action to execute, and the log-probability of each of its draws.

    `mask` is True where the policy chose. `values` is the critic's estimate, one per decision or
    one per draw. `exact` is False where `logprobs` are a surrogate (the flow-matching ratio).
    """

    action: Tensor
    trace: Trace
    logprobs: Float[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    values: Float[Tensor, "B"] | Float[Tensor, "B L"] | None = None
    exact: bool = True


@dataclass(frozen=True)
class ActionScores:
    """Log-probabilities of a stored trace under the present weights, with entropy and values of the
    same forward pass."""

    logprobs: Float[Tensor, "B L"]
    entropy: Float[Tensor, "B L"] | None = None
    values: Float[Tensor, "B"] | Float[Tensor, "B L"] | None = None


@dataclass(frozen=True)
class Rollout:
    """`R` decisions of `N` trajectories; the rows of a trajectory are in order of time.

    `trajectory` [R] holds numbers 0..N-1. `group` [N] is equal for trajectories from one start
    (simulator seed or prompt). `terminated` and `truncated` are never merged. `final_values` [N] is
    the critic's value of the observation after the last row, used where a trajectory was truncated.
    `rewards` [R] may hold NaN: unscorable. `version` [R] counts the updates before the acting
    policy's weights. A text completion is a trajectory of one row.

    `action` [R, ...] is the action sent to the environment. `episodes` holds one number per
    trajectory [N] under each name: "seed", "control_steps", the environment's metrics. Both serve
    reports and viewers; algorithms ignore them.
    """

    observation: Observation
    trace: Trace
    logprobs: Float[Tensor, "R L"]
    mask: Bool[Tensor, "R L"]
    rewards: Float[Tensor, "R"]
    trajectory: Int[Tensor, "R"]
    terminated: Bool[Tensor, "N"]
    truncated: Bool[Tensor, "N"]
    group: Int[Tensor, "N"]
    version: Int[Tensor, "R"]
    success: Float[Tensor, "N"] | None = None
    values: Float[Tensor, "R"] | Float[Tensor, "R L"] | None = None
    final_values: Float[Tensor, "N"] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    exact: bool = True
    action: Tensor | None = None
    episodes: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_trajectories(self) -> int:
        return len(self.group)

    @property
    def returns(self) -> Float[Tensor, "N"]:
        """Undiscounted sum of rewards per trajectory; NaN where any of its rewards is NaN."""
        return torch.zeros(self.num_trajectories, dtype=self.rewards.dtype).index_add(
            0, self.trajectory, self.rewards
        )
