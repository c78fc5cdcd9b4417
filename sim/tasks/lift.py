"""Lift: "lift the red cube": the hand holds the named block up in the air."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sim import rewards
from sim.controllers.controller import Controller, hold
from sim.controllers.grasping import APPROACH, GRASP, LIFT, advance_grasp, approach_goal
from sim.diagnosis import EpisodeTrace, Reason, not_grasped, not_lifted
from sim.initial_states import start
from sim.instructions import InstructionTemplate
from sim.randomize import Randomization
from sim.scenes.objects import BLOCK_HALF_HEIGHT
from sim.task import TARGET

if TYPE_CHECKING:
    from sim.physics import Physics

LIFTED_HEIGHT = 0.08
"""Success: height (metres) of the held block above its rest."""
HEIGHT_MARGIN = 0.03
"""Metres above the height of success that the controller lifts the block."""
LOST_STEPS = 2
"""Control steps that a lifted block may seem lost before the hand goes back to it."""


class Lift:
    """The target block must be held 8 cm above the table."""

    name = "lift"
    template = InstructionTemplate(
        "lift the {first}",
        ("block",),
        ("pick up the {first}", "raise the {first}", "take the {first} off the table"),
    )
    reward_names: tuple[str, ...] = ("reach", "grasp", "lift", "success")

    def __init__(self, ranges: Randomization) -> None:
        self.ranges = ranges

    def initialise(
        self, physics: Physics, rngs: list[np.random.Generator], ids: np.ndarray
    ) -> None:
        """All objects on the table, the hand open above it."""
        start(physics, rngs, ids, self.ranges)

    def height(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Height [n] of the target block above its rest, metres."""
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

    def controller(self) -> Controller:
        """Approach, grasp, lift."""
        return LiftController()

    def diagnose(self, trace: EpisodeTrace) -> Reason:
        """The first step of the motion that the episode did not get past."""
        return not_grasped(trace) or not_lifted(trace) or not_held_up(trace)


def not_held_up(trace: EpisodeTrace) -> Reason:
    """The block was lifted, and not high or not long enough."""
    return Reason(
        "lifted it, not high or long enough",
        f"It lifted the {trace.block} and let go at step {trace.held_until() + 1}.",
    )


class LiftController:
    """Phases: 0 approach, 1 grasp, 2 lift."""

    phases: tuple[str, ...] = ("approach", "grasp", "lift")

    def advance(
        self, physics: Physics, ids: np.ndarray, phase: np.ndarray, timer: np.ndarray
    ) -> np.ndarray:
        """Back to the approach when the block is lost."""
        held = physics.grasped(ids, TARGET)
        new = advance_grasp(physics, ids, phase, timer, held)
        new[(phase == LIFT) & ~held & (timer > LOST_STEPS)] = APPROACH
        return new

    def goal(self, physics: Physics, ids: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """Down onto the block, or up."""
        goal = hold(physics, ids)
        approach = phase == APPROACH
        goal[approach] = approach_goal(physics, ids)[approach]
        goal[phase == LIFT, 2] = BLOCK_HALF_HEIGHT + LIFTED_HEIGHT + HEIGHT_MARGIN
        return goal

    def closed(self, phase: np.ndarray) -> np.ndarray:
        """From the grasp on."""
        return phase >= GRASP
