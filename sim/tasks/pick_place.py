"""Pick and place: "put the red cube on the blue square", among other blocks and pads."""

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

PLACED_DISTANCE = 0.03
"""Success: block centre to pad centre along the table, metres."""
PLACED_MARGIN = 0.004
"""Metres by which the controller is stricter than success."""
RELEASED_OPENING = 0.05
"""Success: distance between the fingers, metres."""
RETRACTED_DISTANCE = 0.05
"""Success: tcp to the block's centre, metres."""


class PickPlace:
    """The target block must lie on the target pad, released, with the hand withdrawn."""

    name = "pick_place"
    template = InstructionTemplate(
        "put the {first} on the {second}",
        ("block", "pad"),
        (
            "place the {first} onto the {second}",
            "move the {first} over to the {second}",
            "the {first} belongs on the {second}",
            "set the {first} down on the {second}",
        ),
    )
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
        """Block within 3 cm of the pad's centre, resting on the table; fingers open, hand away."""
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

    def controller(self) -> Controller:
        """Approach, grasp, lift, carry, release, retract."""
        return PlaceController(position_on_pad, PLACED_DISTANCE - PLACED_MARGIN)

    def diagnose(self, trace: EpisodeTrace) -> Reason:
        """The first step of the motion that the episode did not get past."""
        return not_grasped(trace) or not_lifted(trace) or not_placed(trace, PLACED_DISTANCE)


def position_on_pad(physics: Physics, ids: np.ndarray) -> np.ndarray:
    """The centre [n, 3] of a block that lies on the middle of the target pad, metres."""
    place = physics.pad_position(ids, TARGET).copy()
    place[:, 2] = BLOCK_HALF_HEIGHT
    return place
