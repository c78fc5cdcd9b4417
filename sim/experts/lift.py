"""The expert of lifting: approach, grasp, lift."""

from __future__ import annotations

import numpy as np

from sim.experts.controller import hold
from sim.experts.grasping import APPROACH, GRASP, LIFT, advance_grasp, approach_goal
from sim.physics import Physics
from sim.scenes.objects import BLOCK_HALF_HEIGHT
from sim.task import TARGET
from sim.tasks.lift import LIFTED_HEIGHT


class Lifting:
    """Phases: 0 approach, 1 grasp, 2 lift."""

    phases: tuple[str, ...] = ("approach", "grasp", "lift")

    def advance(
        self, physics: Physics, ids: np.ndarray, phase: np.ndarray, timer: np.ndarray
    ) -> np.ndarray:
        """Back to the approach when the block is lost."""
        held = physics.grasped(ids, TARGET)
        new = advance_grasp(physics, ids, phase, timer, held)
        new[(phase == LIFT) & ~held & (timer > 2)] = APPROACH
        return new

    def goal(self, physics: Physics, ids: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """Down onto the block, or up."""
        goal = hold(physics, ids)
        approach, lift = phase == APPROACH, phase == LIFT
        goal[approach] = approach_goal(physics, ids)[approach]
        goal[lift, 2] = BLOCK_HALF_HEIGHT + LIFTED_HEIGHT + 0.03
        return goal

    def closed(self, phase: np.ndarray) -> np.ndarray:
        """From the grasp on."""
        return phase >= GRASP
