"""The expert of stacking: the target block goes on the other named block, wherever that has been
moved to."""

from __future__ import annotations

import numpy as np

from sim.experts.placing import Placing
from sim.physics import Physics
from sim.tasks.stack import BELOW, STACKED_DISTANCE, STACKED_HEIGHT


def on_the_block(physics: Physics, ids: np.ndarray) -> np.ndarray:
    """The centre [n, 3] of a block that lies on the middle of the other block."""
    return physics.block_position(ids, BELOW) + np.array([0.0, 0.0, STACKED_HEIGHT])


def stack() -> Placing:
    """The controller."""
    return Placing(on_the_block, STACKED_DISTANCE - 0.004)
