"""Continuous actions on one scale: [-1, 1] between the 1 % and 99 % quantiles of the data (Black et al. 2024, pi0).

Quantiles, because one disturbed demonstration must not squeeze all others. Values outside them lie outside [-1, 1] and
come back unharmed. A dimension that hardly moves in the data is left out: its constant is executed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vla.actions.bins import CONSTANT_RANGE


@dataclass(frozen=True)
class ActionNormalizer:
    """`low[i]` and `high[i]` of active dimension i become -1 and 1; `constants[j]` for every dimension, used where
    inactive.
    """

    active: tuple[int, ...]
    constants: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def num_active(self) -> int:
        return len(self.active)

    def encode(self, actions: Float[Tensor, "*rows A"]) -> Float[Tensor, "*rows a"]:
        """Actions (physical units) as values near [-1, 1]."""
        low, high = actions.new_tensor(self.low), actions.new_tensor(self.high)
        return 2 * (actions[..., list(self.active)] - low) / (high - low) - 1

    def decode(self, values: Float[Tensor, "*rows a"]) -> Float[Tensor, "*rows A"]:
        """Values near [-1, 1] as actions, constants elsewhere. Nothing is clipped: the environment does that."""
        low, high = values.new_tensor(self.low), values.new_tensor(self.high)
        actions = values.new_tensor(self.constants).repeat(*values.shape[:-1], 1)
        actions[..., list(self.active)] = low + (values + 1) / 2 * (high - low)
        return actions

    def to_dict(self) -> dict[str, Any]:
        return {"active": self.active, "constants": self.constants, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ActionNormalizer:
        return cls(**{name: tuple(values[name]) for name in ("active", "constants", "low", "high")})


def fit_normalizer(actions: Float[np.ndarray, "N A"]) -> ActionNormalizer:
    """The normaliser of `actions` (frames that the policy should imitate).

    A dimension whose quantiles are equal, because it moves in few frames only, spans its extremes.

    Raises:
        ValueError: no dimension moves.
    """
    low, high = np.quantile(actions.astype(np.float64), [0.01, 0.99], axis=0)
    least, most = actions.min(0), actions.max(0)
    rare = high - low < CONSTANT_RANGE
    low, high = np.where(rare, least, low), np.where(rare, most, high)
    active = np.flatnonzero(most - least >= CONSTANT_RANGE)
    if not len(active):
        raise ValueError(
            "every action dimension is constant in the demonstrations: there is nothing to learn from them"
        )
    return ActionNormalizer(
        active=tuple(int(d) for d in active),
        constants=tuple(float(c) for c in np.median(actions, axis=0)),
        low=tuple(float(v) for v in low[active]),
        high=tuple(float(v) for v in high[active]),
    )
