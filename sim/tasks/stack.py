"""Stack: "stack the red cube on the green brick": the sentence alone says which goes on which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sim import rewards
from sim.controllers.controller import Controller
from sim.controllers.placing import PlaceController
from sim.diagnosis import EpisodeTrace, Reason, not_grasped, not_lifted, not_placed
from sim.initial_states import start
from sim.instructions import InstructionTemplate
from sim.randomize import Randomization
from sim.scenes.objects import BLOCK_HALF_HEIGHT
from sim.task import TARGET

if TYPE_CHECKING:
    from sim.physics import Physics

BELOW = 1
"""Index of the block that the target block goes on."""
STACKED_DISTANCE = 0.02
"""Success: one block's centre to the other's along the table, metres."""
STACKED_MARGIN = 0.004
"""Metres by which the controller is stricter than success."""
STACKED_HEIGHT = 2 * BLOCK_HALF_HEIGHT
"""Height of the upper block's centre above the lower one's, metres."""
HEIGHT_TOLERANCE = 0.006
RELEASED_OPENING = 0.05
"""Success: distance between the fingers, metres."""
RETRACTED_DISTANCE = 0.05
"""Success: tcp to the block's centre, metres."""


class Stack:
    """The target block must lie on the other named block, released, with the hand withdrawn."""

    name = "stack"
    template = InstructionTemplate(
        "stack the {first} on the {second}",
        ("block", "block"),
        ("put the {first} on top of the {second}", "the {first} goes onto the {second}"),
    )
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
        """One block rests on the other within 2 cm; fingers open, hand 5 cm away."""
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

    def controller(self) -> Controller:
        """Approach, grasp, lift, carry, release, retract."""
        return PlaceController(position_on_block, STACKED_DISTANCE - STACKED_MARGIN)

    def diagnose(self, trace: EpisodeTrace) -> Reason:
        """The first step of the motion that the episode did not get past."""
        return not_grasped(trace) or not_lifted(trace) or not_placed(trace)


def position_on_block(physics: Physics, ids: np.ndarray) -> np.ndarray:
    """The centre [n, 3] of a block that lies on the middle of the other block, metres."""
    return physics.block_position(ids, BELOW) + np.array([0.0, 0.0, STACKED_HEIGHT])
