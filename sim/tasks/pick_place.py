"""Pick and place: "put the red cube on the blue square", among distractors that differ in colour or
shape."""

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

PLACED_DISTANCE = 0.03
"""Success: block centre to pad centre on the table, metres."""
RELEASED_OPENING = 0.05
RETRACTED_DISTANCE = 0.05


class PickPlace:
    """The target block must lie on the target pad, released, with the hand withdrawn."""

    name = "pick_place"
    wording = WORDINGS["pick_place"]
    reward_names: tuple[str, ...] = ("reach", "grasp", "lift", "place", "success")

    def __init__(self, ranges: Randomization) -> None:
        self.ranges = ranges

    def initialise(
        self, physics: Physics, rngs: list[np.random.Generator], ids: np.ndarray
    ) -> None:
        """All objects on the table, the hand open above it."""
        start(physics, rngs, ids, self.ranges)

    def block_to_pad(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Vector [n, 2] along the table from the target block to the target pad, metres."""
        return (physics.pad_position(ids, TARGET) - physics.block_position(ids, TARGET))[:, :2]

    def success(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Block within 3 cm of the pad's centre and resting on the table, fingers open, tcp 5 cm
        from the block."""
        placed = np.linalg.norm(self.block_to_pad(physics, ids), axis=1) < PLACED_DISTANCE
        released = physics.gripper_opening(ids) > RELEASED_OPENING
        retracted = np.linalg.norm(physics.hand_to_block(ids, TARGET), axis=1) > RETRACTED_DISTANCE
        return placed & physics.resting(ids, TARGET) & released & retracted

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
            "place": rewards.place(best["lift"] > 0.5, self.block_to_pad(physics, ids)),
            "success": rewards.success(self.success(physics, ids)),
        }
