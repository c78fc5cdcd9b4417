"""Reach: "reach the red cube": the open hand goes to just above the named block, among others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim import rewards
from sim.physics import Physics
from sim.randomize import Randomization
from sim.starts import start
from sim.task import TARGET
from sim.wording import WORDINGS

ABOVE_BLOCK = 0.045
"""The tcp's goal stands this far (metres) above the block's centre: the fingertips clear its
top."""
REACHED_DISTANCE = 0.02


class Reach:
    """The tcp must come within 2 cm of the point above the target block."""

    name = "reach"
    wording = WORDINGS["reach"]
    reward_names: tuple[str, ...] = ("reach", "success")

    def __init__(self, ranges: Randomization) -> None:
        self.ranges = ranges

    def initialise(
        self, physics: Physics, rngs: list[np.random.Generator], ids: np.ndarray
    ) -> None:
        """All objects on the table, the hand open above it."""
        start(physics, rngs, ids, self.ranges)

    def hand_to_goal(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Vector [n, 3] from the tcp to the point above the target block, metres."""
        above = physics.block_position(ids, TARGET) + np.array([0.0, 0.0, ABOVE_BLOCK])
        return above - physics.hand_position(ids)

    def success(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """The tcp within 2 cm of the point above the block, and the block still on the table."""
        near = np.linalg.norm(self.hand_to_goal(physics, ids), axis=1) < REACHED_DISTANCE
        return near & physics.resting(ids, TARGET)

    def reward_terms(
        self, physics: Physics, ids: np.ndarray, best: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """reach, success; see `sim.rewards`."""
        return {
            "reach": rewards.reach(self.hand_to_goal(physics, ids)),
            "success": rewards.success(self.success(physics, ids)),
        }
