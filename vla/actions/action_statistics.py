"""Statistics of demonstrated actions: quantiles, extremes, and rare jumps beyond the quantiles.

A rare jump of a dimension must neither dominate a loss nor be lost. Normalised values are kept
within `MAX_NORMALIZED`, and bins give far values edges of their own.

Shapes: `N` actions, `A` action dimensions. Units are those of the actions (metres, radians).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Num

CONSTANT_RANGE = 1e-5
"""A dimension with a smaller range (metres, radians) is constant."""
MAX_NORMALIZED = 10.0
"""Largest normalised value; those between the 1 % and 99 % quantiles lie within 1."""


@dataclass(frozen=True)
class ActionRange:
    """Statistics of each action dimension: extremes `least` and `most`, 1 % and 99 % quantiles
    `low` and `high`, and the median."""

    least: Float[np.ndarray, "A"]
    low: Float[np.ndarray, "A"]
    median: Float[np.ndarray, "A"]
    high: Float[np.ndarray, "A"]
    most: Float[np.ndarray, "A"]

    @property
    def moves(self) -> Bool[np.ndarray, "A"]:
        """A mask of the dimensions that are not constant."""
        return self.most - self.least >= CONSTANT_RANGE

    @property
    def rare(self) -> Bool[np.ndarray, "A"]:
        """A mask of the dimensions that move in too few frames for their quantiles to differ."""
        return self.moves & (self.high - self.low < CONSTANT_RANGE)

    @property
    def reach(self) -> Float[np.ndarray, "A"]:
        """Largest distance of an extreme from the middle of the quantiles, in halves of the
        distance between the quantiles."""
        middle = (self.high + self.low) / 2
        half = (self.high - self.low) / 2
        return np.maximum(self.most - middle, middle - self.least) / np.maximum(
            half, CONSTANT_RANGE / 2
        )


def check_dimensions(
    active: Sequence[int], constants: Sequence[float], *of_active: Sequence[object]
) -> None:
    """Check the dimensions of an action code.

    Raises:
        ValueError: an active dimension does not exist, or one lacks a limit or a row of bins.
    """
    if not active or not all(0 <= dimension < len(constants) for dimension in active):
        raise ValueError(
            f"the active dimensions {list(active)} are not among the {len(constants)} of its "
            "constants"
        )
    if any(len(part) != len(active) for part in of_active):
        raise ValueError(
            f"it must hold one limit, or row of bins, for each of the {len(active)} active "
            "dimensions"
        )


def measure_action_range(actions: Num[np.ndarray, "N A"]) -> ActionRange:
    """The range of actions that a policy should imitate.

    Raises:
        ValueError: a number is NaN or infinite, or no dimension moves.
    """
    bad = ~np.isfinite(actions)
    if bad.any():
        row, dimension = np.argwhere(bad)[0]
        raise ValueError(
            f"actions hold {int(bad.sum())} numbers that are NaN or infinite, the first in row "
            f"{row}, dimension {dimension}: leave these frames out"
        )
    values = actions.astype(np.float64)
    least, low, high, most = np.quantile(values, [0, 0.01, 0.99, 1], axis=0)
    spread = ActionRange(least, low, np.median(actions, axis=0).astype(np.float64), high, most)
    if not spread.moves.any():
        raise ValueError(
            "every action dimension is constant in the demonstrations: there is nothing to learn "
            "from them"
        )
    return spread


def describe_rare_jumps(
    actions: Num[np.ndarray, "N A"], names: Sequence[str], max_value: float
) -> list[tuple[str, float]]:
    """Dimensions with extremes beyond `max_value` (on the scale of `ActionRange.reach`): a
    sentence, and how many times beyond."""
    spread = measure_action_range(actions)
    return [
        (
            f"{names[d]} spans {spread.low[d]:.3g} to {spread.high[d]:.3g} in 98 % of the "
            f"frames and {spread.least[d]:.3g} to {spread.most[d]:.3g} in all (rare jumps, or "
            "faults of a sensor)",
            float(spread.reach[d] / max_value),
        )
        for d in np.flatnonzero(spread.moves & ~spread.rare & (spread.reach > max_value))
    ]


def describe_widened_scales(
    actions: Num[np.ndarray, "N A"], names: Sequence[str], max_value: float
) -> list[str]:
    """A sentence about each dimension whose normalisation is widened to hold its rare jumps."""
    return [
        f"{jump}: its scale is widened {times:.3g} times, so that they do not dominate the loss; "
        "the other values get as much coarser"
        for jump, times in describe_rare_jumps(actions, names, max_value)
    ]
