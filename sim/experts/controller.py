"""What a task's controller must answer, and the motion that all of them share."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sim.physics import Physics
from sim.robots.rotations import wrap_angle

GAIN = 0.5
"""Share of the remaining distance covered per control step, before the speed limits."""
SPEED_XY, SPEED_Z, SPEED_YAW = 0.03, 0.03, 0.15
"""Metres, metres and radians per control step."""


class Controller(Protocol):
    """Phases of a motion, numbered from 0; everything else is read off the scene. All arrays have a
    row per id [n]."""

    phases: tuple[str, ...]

    def advance(
        self, physics: Physics, ids: np.ndarray, phase: np.ndarray, timer: np.ndarray
    ) -> np.ndarray:
        """The phase [n] that what is seen calls for; `timer` counts control steps since the phase
        began, from 1."""

    def goal(self, physics: Physics, ids: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """Where the commanded x y z yaw [n, 4] should go."""

    def closed(self, phase: np.ndarray) -> np.ndarray:
        """Whether [n] the fingers should close."""


def hold(physics: Physics, ids: np.ndarray) -> np.ndarray:
    """The goal [n, 4] of staying where the command is."""
    return physics.commanded[ids][:, [0, 1, 2, 5]]


def toward(physics: Physics, ids: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Proportional motion [n, 6] of the command towards `goal` [n, 4], with limited speed."""
    command = physics.commanded[ids]
    delta = GAIN * (goal[:, :3] - command[:, :3])
    speed = np.linalg.norm(delta[:, :2], axis=1, keepdims=True)
    delta[:, :2] *= np.minimum(1.0, SPEED_XY / np.maximum(speed, 1e-9))
    delta[:, 2] = np.clip(delta[:, 2], -SPEED_Z, SPEED_Z)
    level = np.clip(-GAIN * command[:, 3:5], -SPEED_YAW, SPEED_YAW)
    turn = np.clip(GAIN * wrap_angle(goal[:, 3:4] - command[:, 5:6]), -SPEED_YAW, SPEED_YAW)
    return np.concatenate([delta, level, turn], axis=1)
