"""Reach: "reach the red cube": the open hand goes to just above the named block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sim import rewards
from sim.controllers.controller import Controller, hold
from sim.diagnosis import EpisodeTrace, Reason, not_reached
from sim.initial_states import start
from sim.instructions import InstructionTemplate
from sim.randomize import Randomization
from sim.task import TARGET

if TYPE_CHECKING:
    from sim.physics import Physics

GOAL_HEIGHT = 0.045
"""Height (metres) of the tcp's goal above the block's centre: the fingertips clear its top."""
REACHED_DISTANCE = 0.02
"""Success: tcp to its goal, metres."""


class Reach:
    """The tcp must come within 2 cm of the point above the target block."""

    name = "reach"
    template = InstructionTemplate(
        "reach the {first}",
        ("block",),
        ("go to the {first}", "move above the {first}", "hover over the {first}"),
    )
    reward_names: tuple[str, ...] = ("reach", "success")

    def __init__(self, ranges: Randomization) -> None:
        self.ranges = ranges

    def initialise(
        self, physics: Physics, rngs: list[np.random.Generator], ids: np.ndarray
    ) -> None:
        """All objects on the table, the hand open above it."""
        start(physics, rngs, ids, self.ranges)

    def success(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """The tcp within 2 cm of the point above the block, and the block still on the table."""
        near = np.linalg.norm(hand_to_goal(physics, ids), axis=1) < REACHED_DISTANCE
        return near & physics.resting(ids, TARGET)

    def reward_terms(
        self, physics: Physics, ids: np.ndarray, best: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """reach, success; see `sim.rewards`."""
        return {
            "reach": rewards.reach(hand_to_goal(physics, ids)),
            "success": rewards.success(self.success(physics, ids)),
        }

    def controller(self) -> Controller:
        """Straight to the point above the block."""
        return ReachController()

    def diagnose(self, trace: EpisodeTrace) -> Reason:
        """The hand was never there."""
        return not_reached(trace)


def goal_position(physics: Physics, ids: np.ndarray) -> np.ndarray:
    """The point [n, 3] above the target block, metres."""
    return physics.block_position(ids, TARGET) + np.array([0.0, 0.0, GOAL_HEIGHT])


def hand_to_goal(physics: Physics, ids: np.ndarray) -> np.ndarray:
    """Vector [n, 3] from the tcp to the point above the target block, metres."""
    return goal_position(physics, ids) - physics.hand_position(ids)


class ReachController:
    """One phase: go to the point above the target block."""

    phases: tuple[str, ...] = ("reach",)

    def advance(
        self, physics: Physics, ids: np.ndarray, phase: np.ndarray, timer: np.ndarray
    ) -> np.ndarray:
        """The same phase: there is no other."""
        return phase.copy()

    def goal(self, physics: Physics, ids: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """The point above the block, the hand's yaw kept."""
        goal = hold(physics, ids)
        goal[:, :3] = goal_position(physics, ids)
        return goal

    def closed(self, phase: np.ndarray) -> np.ndarray:
        """Never."""
        return np.zeros(len(phase), dtype=bool)
