"""Lift: "lift the red cube": hold the named block up in the air, among others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim import rewards
from sim.physics import Physics
from sim.randomize import Randomization
from sim.scenes.objects import BLOCK_HALF_HEIGHT
from sim.starts import start
from sim.task import TARGET
from sim.wording import WORDINGS

LIFTED_HEIGHT = 0.08
"""Success: how far (metres) the held block is above its rest."""


class Lift:
    """The target block must be held 8 cm above the table."""

    name = "lift"
    wording = WORDINGS["lift"]
    reward_names: tuple[str, ...] = ("reach", "grasp", "lift", "success")

    def __init__(self, ranges: Randomization) -> None:
        self.ranges = ranges

    def initialise(
        self, physics: Physics, rngs: list[np.random.Generator], ids: np.ndarray
    ) -> None:
        """All objects on the table, the hand open above it."""
        start(physics, rngs, ids, self.ranges)

    def height(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """How far [n] the target block is above its rest, metres."""
        return physics.block_position(ids, TARGET)[:, 2] - BLOCK_HALF_HEIGHT

    def success(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """The block held, 8 cm above the table."""
        return physics.grasped(ids, TARGET) & (self.height(physics, ids) > LIFTED_HEIGHT)

    def reward_terms(
        self, physics: Physics, ids: np.ndarray, best: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """reach, grasp, lift, success; see `sim.rewards`."""
        held = physics.grasped(ids, TARGET)
        return {
            "reach": rewards.reach(physics.hand_to_block(ids, TARGET)),
            "grasp": rewards.grasp(held),
            "lift": rewards.lift(held, self.height(physics, ids)),
            "success": rewards.success(self.success(physics, ids)),
        }
