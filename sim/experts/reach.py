"""The expert of reaching: straight to the point above the target block."""

from __future__ import annotations

import numpy as np

from sim.experts.controller import hold
from sim.physics import Physics
from sim.task import TARGET
from sim.tasks.reach import ABOVE_BLOCK


class Reaching:
    """One phase."""

    phases: tuple[str, ...] = ("reach",)

    def advance(
        self, physics: Physics, ids: np.ndarray, phase: np.ndarray, timer: np.ndarray
    ) -> np.ndarray:
        """There is nothing else to do."""
        return phase.copy()

    def goal(self, physics: Physics, ids: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """The point above the block."""
        goal = hold(physics, ids)
        goal[:, :3] = physics.block_position(ids, TARGET) + np.array([0.0, 0.0, ABOVE_BLOCK])
        return goal

    def closed(self, phase: np.ndarray) -> np.ndarray:
        """Never."""
        return np.zeros(len(phase), dtype=bool)
