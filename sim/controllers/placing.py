"""The controller that puts the target block somewhere, with recovery from any of its phases.

Carrying and lowering are one motion down a funnel over the place, as the approach is over the
block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sim.controllers.controller import hold
from sim.controllers.grasping import (
    APPROACH,
    GRASP,
    LIFT,
    NEAR_XY,
    NEAR_Z,
    OPEN_WIDE,
    advance_grasp,
    approach_goal,
)
from sim.task import TARGET

if TYPE_CHECKING:
    from sim.physics import Physics

CARRY, RELEASE, RETRACT = range(3, 6)
CARRY_HEIGHT = 0.075
RETRACT_HEIGHT = 0.10
"""Heights above the place, metres."""


class PlaceController:
    """Phases: 0 approach, 1 grasp, 2 lift, 3 carry, 4 release, 5 retract.

    The observation decides every motion, not the time waited. A policy without a memory cannot
    tell open fingers that wait from open fingers that leave, and would learn to wait for ever.

    Args:
        place: the position [n, 3] that the target block's centre goes to, metres.
        placed_distance: a block released within this distance (metres) of its place is left there.
    """

    phases: tuple[str, ...] = ("approach", "grasp", "lift", "carry", "release", "retract")

    def __init__(
        self, place: Callable[[Physics, np.ndarray], np.ndarray], placed_distance: float
    ) -> None:
        self._place = place
        self._placed_distance = placed_distance

    def advance(
        self, physics: Physics, ids: np.ndarray, phase: np.ndarray, timer: np.ndarray
    ) -> np.ndarray:
        """Back to the approach wherever the block is neither held nor placed."""
        held = physics.grasped(ids, TARGET)
        block = physics.block_position(ids, TARGET)
        place = self._place(physics, ids)
        distance = np.linalg.norm((place - block)[:, :2], axis=1)
        lifted = block[:, 2] - place[:, 2]
        low = np.abs(lifted) < NEAR_Z
        new = advance_grasp(physics, ids, phase, timer, held)
        new[(phase == LIFT) & held & (lifted > 0.6 * CARRY_HEIGHT)] = CARRY
        new[(phase == LIFT) & held & (distance < NEAR_XY)] = CARRY
        new[(phase == CARRY) & held & low & (distance < NEAR_XY + 0.004)] = RELEASE
        new[((phase == LIFT) | (phase == CARRY)) & ~held & (timer > 2)] = APPROACH
        new[(phase == RELEASE) & (physics.gripper_opening(ids) > OPEN_WIDE)] = RETRACT
        done = (distance < self._placed_distance) & low
        new[(phase >= RELEASE) & ~done] = APPROACH
        new[(phase == APPROACH) & done & ~held] = RETRACT
        return new

    def goal(self, physics: Physics, ids: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """Down onto the block, up, over the place and down onto it, up and away."""
        block = physics.block_position(ids, TARGET)
        place = self._place(physics, ids)
        goal = hold(physics, ids)
        approach = phase == APPROACH
        goal[approach] = approach_goal(physics, ids)[approach]

        lift = phase == LIFT
        goal[lift, 2] = (place[:, 2] + CARRY_HEIGHT + 0.02)[lift]

        # The servo follows with a lag: aim so that the measured hand, not the command, arrives.
        carry = phase == CARRY
        grip = block - physics.hand_position(ids)
        distance = np.linalg.norm((place - block)[:, :2], axis=1)
        height = np.clip(2.5 * (distance - NEAR_XY), 0, CARRY_HEIGHT)
        goal[carry, :2] = (place - grip)[carry, :2]
        goal[carry, 2] = (place[:, 2] + 0.002 - grip[:, 2] + height)[carry]

        retract = phase == RETRACT
        goal[retract, 2] = (place[:, 2] + RETRACT_HEIGHT)[retract]
        return goal

    def closed(self, phase: np.ndarray) -> np.ndarray:
        """From the grasp to the end of the carrying."""
        return (phase >= GRASP) & (phase <= CARRY)
