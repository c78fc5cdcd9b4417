"""Reward terms: pure functions of distances and contacts to [0, 1]; settings hold their weights."""

from __future__ import annotations

import numpy as np

MARGIN_VALUE = 0.1
"""Value of `tolerance` at its margin."""
NEAR = 0.01
"""Distance (metres) within which a term about a distance is complete."""
LIFT_HEIGHT = 0.05
"""Height above rest (metres) at which lifting is complete."""


def tolerance(x: np.ndarray, upper: float, margin: float) -> np.ndarray:
    """1 where |x| <= upper, then a Gaussian with the value 0.1 at `margin` beyond it.

    After dm_control (Tassa et al. 2018).
    """
    scale = np.sqrt(-2.0 * np.log(MARGIN_VALUE))
    excess = np.maximum(np.abs(x) - upper, 0.0) / margin
    return np.exp(-0.5 * (excess * scale) ** 2)


def reach(hand_to_block: np.ndarray) -> np.ndarray:
    """Closeness [n] of the tcp to the block, from the vector between them [n, 3], metres."""
    return tolerance(np.linalg.norm(hand_to_block, axis=1), upper=NEAR, margin=0.15)


def grasp(grasped: np.ndarray) -> np.ndarray:
    """1 while the block is held."""
    return grasped.astype(np.float64)


def lift(grasped: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Height [n] of a held block, complete at 5 cm; `height` [n] in metres above its rest."""
    return grasped * np.clip(height / LIFT_HEIGHT, 0.0, 1.0)


def place(was_lifted: np.ndarray, block_to_pad: np.ndarray) -> np.ndarray:
    """Closeness [n] of the block to the pad along the table [n, 2], metres, once it was lifted."""
    return was_lifted * tolerance(np.linalg.norm(block_to_pad, axis=1), upper=NEAR, margin=0.15)


def push(block_to_pad: np.ndarray) -> np.ndarray:
    """Closeness [n] of the block to the pad, from the vector along the table [n, 2], metres."""
    return tolerance(np.linalg.norm(block_to_pad, axis=1), upper=NEAR, margin=0.1)


def success(succeeded: np.ndarray) -> np.ndarray:
    """1 when the task is done."""
    return succeeded.astype(np.float64)
