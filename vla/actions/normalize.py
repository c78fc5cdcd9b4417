"""Continuous actions on one scale: [-1, 1] between the 1 % and 99 % quantiles of the data (Black et
al. 2024, pi0).

Quantiles, because one disturbed demonstration must not squeeze all others. Values outside them lie
outside [-1, 1], up to 10, and come back unharmed; where they would lie further out the scale is
widened, for one number of 1000 squared drowns a batch. A dimension that hardly moves in the data is
left out: its constant is executed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from torch import Tensor

from vla.actions.action_range import MAX_NORMALIZED, check_dimensions, measure_action_range


@dataclass(frozen=True)
class ActionNormalizer:
    """`low[i]` and `high[i]` of active dimension i become -1 and 1; `constants[j]` for every
    dimension, used where inactive.
    """

    active: tuple[int, ...]
    constants: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        check_dimensions(self.active, self.constants, self.low, self.high)

    @property
    def num_active(self) -> int:
        return len(self.active)

    def encode(self, actions: Num[Tensor, "*rows A"]) -> Float[Tensor, "*rows a"]:
        """Actions (physical units) as values near [-1, 1]."""
        actions = actions.float()  # of whole numbers or bfloat16 the limits would be rounded too
        low = actions.new_tensor(self.low)
        high = actions.new_tensor(self.high)
        return 2 * (actions[..., list(self.active)] - low) / (high - low) - 1

    def decode(self, values: Float[Tensor, "*rows a"]) -> Float[Tensor, "*rows A"]:
        """Values near [-1, 1] as actions, constants elsewhere. Nothing is clipped: the environment
        does that."""
        values = values.float()
        low = values.new_tensor(self.low)
        high = values.new_tensor(self.high)
        actions = values.new_tensor(self.constants).repeat(*values.shape[:-1], 1)
        actions[..., list(self.active)] = low + (values + 1) / 2 * (high - low)
        return actions

    def to_dict(self) -> dict[str, Any]:
        return {
            "active": self.active,
            "constants": self.constants,
            "low": self.low,
            "high": self.high,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ActionNormalizer:
        active = tuple(int(d) for d in values["active"])
        return cls(
            active,
            *(tuple(float(v) for v in values[name]) for name in ("constants", "low", "high")),
        )


def fit_normalizer(
    actions: Num[np.ndarray, "N A"], farthest: float = MAX_NORMALIZED
) -> ActionNormalizer:
    """The normaliser of `actions` (frames that the policy should imitate); none of them lies beyond
    +-`farthest`.

    A dimension whose quantiles are equal, because it moves in few frames only, spans its extremes.
    One whose extremes lie further out than `farthest` is widened about its middle until they do
    not.

    Raises:
        ValueError: no dimension moves, or a number is NaN or infinite.
    """
    found = measure_action_range(actions)
    widened = np.maximum(found.reach / farthest, 1.0)
    middle = (found.low + found.high) / 2
    half = (found.high - found.low) / 2
    far = widened > 1
    low = np.where(found.rare, found.least, np.where(far, middle - half * widened, found.low))
    high = np.where(found.rare, found.most, np.where(far, middle + half * widened, found.high))
    active = np.flatnonzero(found.moves)
    return ActionNormalizer(
        active=tuple(int(d) for d in active),
        constants=tuple(float(c) for c in found.median),
        low=tuple(float(v) for v in low[active]),
        high=tuple(float(v) for v in high[active]),
    )
