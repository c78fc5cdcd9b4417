"""The expert of pick-and-place: the target block goes on the target pad."""

from __future__ import annotations

import numpy as np

from sim.experts.placing import Placing
from sim.physics import Physics
from sim.scenes.objects import BLOCK_HALF_HEIGHT
from sim.task import TARGET
from sim.tasks.pick_place import PLACED_DISTANCE


def on_the_pad(physics: Physics, ids: np.ndarray) -> np.ndarray:
    """The centre [n, 3] of a block that lies on the middle of the target pad."""
    place = physics.pad_position(ids, TARGET).copy()
    place[:, 2] = BLOCK_HALF_HEIGHT
    return place


def pick_place() -> Placing:
    """The controller."""
    return Placing(on_the_pad, PLACED_DISTANCE - 0.004)
