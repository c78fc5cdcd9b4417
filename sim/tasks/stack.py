"""Stack: "stack the red cube on the green brick": which block goes on which is for the words to
say."""

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

BELOW = 1
"""The block that the target block goes on."""
STACKED_DISTANCE = 0.02
STACKED_HEIGHT = 2 * BLOCK_HALF_HEIGHT
HEIGHT_TOLERANCE = 0.006
RELEASED_OPENING = 0.05
RETRACTED_DISTANCE = 0.05


class Stack:
    """The target block must lie on the other named block, released, with the hand withdrawn."""

    name = "stack"
    wording = WORDINGS["stack"]
    reward_names: tuple[str, ...] = ("reach", "grasp", "lift", "place", "success")

    def __init__(self, ranges: Randomization) -> None:
        self.ranges = ranges

    def initialise(
        self, physics: Physics, rngs: list[np.random.Generator], ids: np.ndarray
    ) -> None:
        """All objects on the table, the hand open above it."""
        start(physics, rngs, ids, self.ranges)

    def block_to_block(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Vector [n, 3] from the target block's centre to the other's, metres."""
        return physics.block_position(ids, BELOW) - physics.block_position(ids, TARGET)

    def success(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """One block's height above the other within 6 mm, 2 cm along the table, fingers open, tcp 5
        cm away."""
        offset = self.block_to_block(physics, ids)
        stacked = np.linalg.norm(offset[:, :2], axis=1) < STACKED_DISTANCE
        stacked &= np.abs(offset[:, 2] + STACKED_HEIGHT) < HEIGHT_TOLERANCE
        released = physics.gripper_opening(ids) > RELEASED_OPENING
        retracted = np.linalg.norm(physics.hand_to_block(ids, TARGET), axis=1) > RETRACTED_DISTANCE
        return stacked & physics.resting(ids, BELOW) & released & retracted

    def reward_terms(
        self, physics: Physics, ids: np.ndarray, best: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """reach, grasp, lift, place, success; see `sim.rewards`."""
        held = physics.grasped(ids, TARGET)
        height = physics.block_position(ids, TARGET)[:, 2] - BLOCK_HALF_HEIGHT
        return {
            "reach": rewards.reach(physics.hand_to_block(ids, TARGET)),
            "grasp": rewards.grasp(held),
            "lift": rewards.lift(held, height),
            "place": rewards.place(best["lift"] > 0.5, self.block_to_block(physics, ids)[:, :2]),
            "success": rewards.success(self.success(physics, ids)),
        }
