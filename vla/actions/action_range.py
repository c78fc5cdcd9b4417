"""How far demonstrated actions spread: quantiles, extremes, and the few that lie far beyond all
others.

One rare jump of a dimension that else only trembles must neither blow up a loss nor vanish. What
lies far out is kept within reach: normalised values stay within `MAX_NORMALIZED`, and bins give the far
values edges of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Num

CONSTANT_RANGE = 1e-5
"""A dimension whose values span less than this (metres, radians) is constant."""
MAX_NORMALIZED = 10.0
"""No normalised value lies further from 0 than this; those between the 1 % and 99 % quantiles lie
within 1."""


@dataclass(frozen=True)
class ActionRange:
    """Of each dimension [A]: extremes `least` and `most`, 1 % and 99 % quantiles `low` and `high`,
    and the median."""

    least: Float[np.ndarray, "A"]
    low: Float[np.ndarray, "A"]
    median: Float[np.ndarray, "A"]
    high: Float[np.ndarray, "A"]
    most: Float[np.ndarray, "A"]

    @property
    def moves(self) -> Bool[np.ndarray, "A"]:
        """Which dimensions are not constant."""
        return self.most - self.least >= CONSTANT_RANGE

    @property
    def rare(self) -> Bool[np.ndarray, "A"]:
        """Which dimensions move in so few frames that their quantiles are equal."""
        return self.moves & (self.high - self.low < CONSTANT_RANGE)

    @property
    def reach(self) -> Float[np.ndarray, "A"]:
        """How far the extremes lie from the middle of the quantiles, in halves of the distance
        between these."""
        middle = (self.high + self.low) / 2
        half = (self.high - self.low) / 2
        return np.maximum(self.most - middle, middle - self.least) / np.maximum(
            half, CONSTANT_RANGE / 2
        )


def check_dimensions(
    active: Sequence[int], constants: Sequence[float], *of_active: Sequence[object]
) -> None:
    """ValueError where a code of actions names dimensions that are not there, or lacks something of
    an active one."""
    if not active or not all(0 <= dimension < len(constants) for dimension in active):
        raise ValueError(
            f"the active dimensions {list(active)} are not among the {len(constants)} of its constants"
        )
    if any(len(part) != len(active) for part in of_active):
        raise ValueError(
            f"it must hold one limit, or row of bins, for each of the {len(active)} active dimensions"
        )


def measure_action_range(actions: Num[np.ndarray, "N A"]) -> ActionRange:
    """The spread of actions that a policy should imitate.

    Raises:
        ValueError: a number is NaN or infinite, or no dimension moves.
    """
    bad = ~np.isfinite(actions)
    if bad.any():
        row, dimension = np.argwhere(bad)[0]
        raise ValueError(
            f"actions hold {int(bad.sum())} numbers that are NaN or infinite, the first in row {row}, dimension "
            f"{dimension}: leave these frames out"
        )
    values = actions.astype(np.float64)
    least, low, high, most = np.quantile(values, [0, 0.01, 0.99, 1], axis=0)
    found = ActionRange(least, low, np.median(actions, axis=0).astype(np.float64), high, most)
    if not found.moves.any():
        raise ValueError(
            "every action dimension is constant in the demonstrations: there is nothing to learn from them"
        )
    return found


def describe_rare_jumps(
    actions: Num[np.ndarray, "N A"], names: Sequence[str], farthest: float
) -> list[tuple[str, float]]:
    """Dimensions whose extremes lie further out than `farthest`: a sentence, and how many times
    further."""
    found = measure_action_range(actions)
    return [
        (
            f"{names[d]} spans {found.low[d]:.3g} to {found.high[d]:.3g} in 98 % of the frames and "
            f"{found.least[d]:.3g} to {found.most[d]:.3g} in all (rare jumps, or faults of a sensor)",
            float(found.reach[d] / farthest),
        )
        for d in np.flatnonzero(found.moves & ~found.rare & (found.reach > farthest))
    ]


def describe_widened_scales(
    actions: Num[np.ndarray, "N A"], names: Sequence[str], farthest: float
) -> list[str]:
    """A sentence about each dimension whose normalisation is widened to hold its rare jumps."""
    return [
        f"{jump}: its scale is widened {times:.3g} times: they do not drown the rest, which gets as much coarser"
        for jump, times in describe_rare_jumps(actions, names, farthest)
    ]
