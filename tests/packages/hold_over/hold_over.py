"""Hold over: "hold the red cube over the blue square", without letting go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sim import rewards
from sim.controllers.controller import Controller, hold
from sim.controllers.grasping import APPROACH, GRASP, LIFT, advance_grasp, approach_goal
from sim.diagnosis import EpisodeTrace, Reason, not_grasped, not_lifted, not_there_in_time
from sim.initial_states import start
from sim.instructions import InstructionTemplate
from sim.randomize import Randomization
from sim.scenes.objects import BLOCK_HALF_HEIGHT
from sim.task import TARGET

if TYPE_CHECKING:
    from sim.physics import Physics

OVER_DISTANCE = 0.02
"""Success: block centre to pad centre along the table, metres."""
OVER_HEIGHT = 0.06
"""Success: height of the held block above its rest, metres."""
GOAL_HEIGHT = BLOCK_HALF_HEIGHT + OVER_HEIGHT + 0.02
CARRY = 3


class HoldOver:
    """The target block must be held 6 cm above the target pad."""

    name = "hold_over"
    template = InstructionTemplate(
        "hold the {first} over the {second}",
        ("block", "pad"),
        ("keep the {first} above the {second}",),
    )
    reward_names: tuple[str, ...] = ("reach", "grasp", "lift", "over", "success")

    def __init__(self, ranges: Randomization) -> None:
        self.ranges = ranges

    def initialise(
        self, physics: Physics, rngs: list[np.random.Generator], ids: np.ndarray
    ) -> None:
        """All objects on the table, the hand open above it."""
        start(physics, rngs, ids, self.ranges)

    def success(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """The block held, 6 cm above the pad."""
        over = np.linalg.norm(block_to_pad(physics, ids), axis=1) < OVER_DISTANCE
        return physics.grasped(ids, TARGET) & over & (height(physics, ids) > OVER_HEIGHT)

    def reward_terms(
        self, physics: Physics, ids: np.ndarray, best: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """reach, grasp, lift, over, success; see `sim.rewards`."""
        held = physics.grasped(ids, TARGET)
        return {
            "reach": rewards.reach(physics.hand_to_block(ids, TARGET)),
            "grasp": rewards.grasp(held),
            "lift": rewards.lift(held, height(physics, ids)),
            "over": rewards.place(held, block_to_pad(physics, ids)),
            "success": rewards.success(self.success(physics, ids)),
        }

    def controller(self) -> Controller:
        """Approach, grasp, lift, carry."""
        return HoldOverController()

    def diagnose(self, trace: EpisodeTrace) -> Reason:
        """The first step of the motion that the episode did not get past."""
        return not_grasped(trace) or not_lifted(trace) or not_held(trace)


def block_to_pad(physics: Physics, ids: np.ndarray) -> np.ndarray:
    """Vector [n, 2] along the table from the target block to the target pad, metres."""
    return (physics.pad_position(ids, TARGET) - physics.block_position(ids, TARGET))[:, :2]


def height(physics: Physics, ids: np.ndarray) -> np.ndarray:
    """Height [n] of the target block above its rest, metres."""
    return physics.block_position(ids, TARGET)[:, 2] - BLOCK_HALF_HEIGHT


def not_held(trace: EpisodeTrace) -> Reason:
    """The lifted block was let go, or did not arrive."""
    if trace.held_until() < trace.end:
        return Reason(
            "let go of it", f"It let go of the {trace.block} at step {trace.held_until() + 1}."
        )
    return not_there_in_time(trace)


class HoldOverController:
    """Phases: 0 approach, 1 grasp, 2 lift, 3 carry."""

    phases: tuple[str, ...] = ("approach", "grasp", "lift", "carry")

    def advance(
        self, physics: Physics, ids: np.ndarray, phase: np.ndarray, timer: np.ndarray
    ) -> np.ndarray:
        """Back to the approach when the block is lost."""
        held = physics.grasped(ids, TARGET)
        new = advance_grasp(physics, ids, phase, timer, held)
        new[(phase == LIFT) & held & (height(physics, ids) > OVER_HEIGHT)] = CARRY
        new[(phase >= LIFT) & ~held & (timer > 2)] = APPROACH
        return new

    def goal(self, physics: Physics, ids: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """Down onto the block, up, and over the pad."""
        goal = hold(physics, ids)
        approach = phase == APPROACH
        goal[approach] = approach_goal(physics, ids)[approach]
        goal[phase >= LIFT, 2] = GOAL_HEIGHT
        carry = phase == CARRY
        hand = physics.hand_position(ids)[:, :2]
        goal[carry, :2] = (hand + block_to_pad(physics, ids))[carry]
        return goal

    def closed(self, phase: np.ndarray) -> np.ndarray:
        """From the grasp on."""
        return phase >= GRASP
