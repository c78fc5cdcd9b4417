"""Reward terms: pure functions from distances and facts to [0, 1]. Their weights come from the
caller."""

from __future__ import annotations

import numpy as np

MARGIN_VALUE = 0.1


def tolerance(x: np.ndarray, upper: float, margin: float) -> np.ndarray:
    """1 where |x| <= upper, then a Gaussian that is 0.1 at `margin` beyond it (after dm_control,
    Tassa et al. 2018)."""
    scale = np.sqrt(-2.0 * np.log(MARGIN_VALUE))
    excess = np.maximum(np.abs(x) - upper, 0.0) / margin
    return np.exp(-0.5 * (excess * scale) ** 2)


def reach(hand_to_block: np.ndarray) -> np.ndarray:
    """How near [n] the tcp is to the block, from the vector between them [n, 3] (metres)."""
    return tolerance(np.linalg.norm(hand_to_block, axis=1), upper=0.01, margin=0.15)


def grasp(grasped: np.ndarray) -> np.ndarray:
    """1 while the block is held."""
    return grasped.astype(np.float64)


def lift(grasped: np.ndarray, height: np.ndarray) -> np.ndarray:
    """How high [n] a held block is, complete at 5 cm above its rest; `height` [n] in metres above
    rest."""
    return grasped * np.clip(height / 0.05, 0.0, 1.0)


def place(was_lifted: np.ndarray, block_to_pad: np.ndarray) -> np.ndarray:
    """How near [n] the block is to the pad on the table [n, 2] (metres), once it has been
    lifted."""
    return was_lifted * tolerance(np.linalg.norm(block_to_pad, axis=1), upper=0.01, margin=0.15)


def push(block_to_pad: np.ndarray) -> np.ndarray:
    """How near [n] the block is to the pad, from the vector between them on the table [n, 2]
    (metres)."""
    return tolerance(np.linalg.norm(block_to_pad, axis=1), upper=0.01, margin=0.1)


def success(succeeded: np.ndarray) -> np.ndarray:
    """1 when the task is done."""
    return succeeded.astype(np.float64)
