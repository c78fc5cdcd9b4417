"""Normalised actions: [-1, 1] between the 1 % and 99 % quantiles of the data (Black et al. 2024,
pi0).

With quantiles, one disturbed demonstration does not compress the range of all others. Values
outside them lie outside [-1, 1], up to 10, and are decoded exactly. Where they would lie further
out, the scale is widened: a single value of 1000, squared, dominates the loss of a batch. Constant
dimensions are left out: their constant is executed.

Shapes: `N` actions, `A` action dimensions, `a` of them active.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from vla.actions.action_statistics import MAX_NORMALIZED, check_dimensions, measure_action_range
from vla.devices import constant


@dataclass(frozen=True)
class ActionNormalizer:
    """A linear map of active dimensions: `low[i]` and `high[i]` of dimension `active[i]` become -1
    and 1.

    `constants[j]`, for every dimension, is executed where dimension j is inactive.

    Raises:
        ValueError: the parts have contradictory sizes.
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
        # In float32: integers or bfloat16 would round the limits.
        low, high = self._limits(actions.device)
        return 2 * (actions.float()[..., self._columns(actions.device)] - low) / (high - low) - 1

    def decode(self, values: Float[Tensor, "*rows a"]) -> Float[Tensor, "*rows A"]:
        """Values near [-1, 1] as actions (physical units), constants elsewhere.

        Nothing is clipped; the environment does that.
        """
        values = values.float()
        low, high = self._limits(values.device)
        actions = constant(self.constants, values.device).repeat(*values.shape[:-1], 1)
        actions[..., self._columns(values.device)] = low + (values + 1) / 2 * (high - low)
        return actions

    def _limits(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return constant(self.low, device), constant(self.high, device)

    def _columns(self, device: torch.device) -> Tensor:
        return constant(self.active, device, torch.long)

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
    actions: Num[np.ndarray, "N A"], max_value: float = MAX_NORMALIZED
) -> ActionNormalizer:
    """The normaliser of `actions` (frames that the policy should imitate), within +-`max_value`.

    A dimension that moves in too few frames for its quantiles to differ spans its extremes. One
    with extremes beyond `max_value` is widened about its middle until they lie within.

    Raises:
        ValueError: no dimension moves, or a number is NaN or infinite.
    """
    spread = measure_action_range(actions)
    widened = np.maximum(spread.reach / max_value, 1.0)
    middle = (spread.low + spread.high) / 2
    half = (spread.high - spread.low) / 2
    far = widened > 1
    low = np.where(spread.rare, spread.least, np.where(far, middle - half * widened, spread.low))
    high = np.where(spread.rare, spread.most, np.where(far, middle + half * widened, spread.high))
    active = np.flatnonzero(spread.moves)
    return ActionNormalizer(
        active=tuple(int(d) for d in active),
        constants=tuple(float(c) for c in spread.median),
        low=tuple(float(v) for v in low[active]),
        high=tuple(float(v) for v in high[active]),
    )
