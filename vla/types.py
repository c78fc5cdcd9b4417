"""The data that move between policies, environments and algorithms.

Every policy acts in *draws*: text tokens, action tokens or denoising steps. A row is one decision,
made of `L` draws. The reinforcement-learning core sees log-probabilities, masks, rewards, values
and group ids, and never opens a trace.

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
"""What a policy must remember to score its own draws again: any tensors whose first dimension is
the row."""

T = TypeVar("T")


def map_rows(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """Apply `function` to every tensor in a tensor, mapping, dataclass or None, keeping the
    structure."""
    if value is None:
        return None  # type: ignore[return-value]
    if isinstance(value, Tensor):
        return function(value)  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {key: map_rows(item, function) for key, item in value.items()}  # type: ignore[return-value]
    names = [f.name for f in fields(value) if isinstance(getattr(value, f.name), (Tensor, Mapping))]  # type: ignore[arg-type]
    return replace(value, **{name: map_rows(getattr(value, name), function) for name in names})  # type: ignore[type-var]


def concatenate_rows(values: list[T]) -> T:
    """Join a list of equal structures along their rows; tensors must agree in every other
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
    """What a policy sees. `images` are uint8 RGB; `tokens` are the instruction or prompt,
    right-padded. `label_mask` says which of those tokens are no instruction but tell how good a
    decision is (None: none): only heads read them.
    """

    images: Mapping[str, UInt8[Tensor, "B h w 3"]]
    proprio: Float[Tensor, "B s"] | None
    tokens: Int[Tensor, "B n"]
    token_mask: Bool[Tensor, "B n"]
    label_mask: Bool[Tensor, "B n"] | None = None

    @property
    def instruction_mask(self) -> Bool[Tensor, "B n"]:
        """The tokens that are neither padding nor a label."""
        return self.token_mask if self.label_mask is None else self.token_mask & ~self.label_mask


@dataclass(frozen=True)
class Decision:
    """What a policy does: the action the world executes, and how likely each draw behind it was.

    `mask` is True where the policy chose. `values` is the critic's estimate, one a decision or one
    a draw. `exact` is False when `logprobs` are a surrogate (the flow-matching ratio).
    """

    action: Tensor
    trace: Trace
    logprobs: Float[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    values: Float[Tensor, "B"] | Float[Tensor, "B L"] | None = None
    exact: bool = True


@dataclass(frozen=True)
class ActionScores:
    """How likely a stored trace is under the present weights, with what one forward pass gives
    besides."""

    logprobs: Float[Tensor, "B L"]
    entropy: Float[Tensor, "B L"] | None = None
    values: Float[Tensor, "B"] | Float[Tensor, "B L"] | None = None


@dataclass(frozen=True)
class Rollout:
    """`R` decisions of `N` trajectories, row by row; a trajectory's rows stand in the order of
    time.

    `trajectory` [R] numbers 0..N-1; `group` [N] is equal for trajectories from one start (simulator
    seed or prompt). `terminated` and `truncated` are never merged; `final_values` [N] is the
    critic's value of the observation after the last row, used where a trajectory was truncated.
    `rewards` [R] may hold NaN: unscorable. `version` [R] counts the updates the acting policy had
    seen. A text completion is a trajectory of one row.

    `action` [R, ...] is what the world was told to execute, and `episodes` holds a number per
    trajectory [N] under each name ("seed", "control_steps", the environment's own metrics): for
    reports and viewers, algorithms ignore both.
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
    metrics: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    action: Tensor | None = None
    episodes: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_trajectories(self) -> int:
        return len(self.group)

    @property
    def returns(self) -> Float[Tensor, "N"]:
        """Undiscounted sum of rewards of each trajectory; NaN where any of its rewards is."""
        return torch.zeros(self.num_trajectories, dtype=self.rewards.dtype).index_add(
            0, self.trajectory, self.rewards
        )
