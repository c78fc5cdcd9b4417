"""The protocol of a task's scripted controller, and the motion that all of them share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from sim.robots.rotations import wrap_angle

if TYPE_CHECKING:
    from sim.physics import Physics

GAIN = 0.5
"""Share of the remaining distance covered per control step, before the speed limits."""
SPEED_XY = 0.03
SPEED_Z = 0.03
"""Metres per control step."""
SPEED_YAW = 0.15
"""Radians per control step."""


class Controller(Protocol):
    """Phases of a motion, numbered from 0. All arrays have a row per id [n].

    The scene alone decides the phase, beside a count of control steps in it: the controller keeps
    no state of its own.
    """

    phases: tuple[str, ...]

    def advance(
        self, physics: Physics, ids: np.ndarray, phase: np.ndarray, timer: np.ndarray
    ) -> np.ndarray:
        """The next phase [n]; `timer` counts control steps since the phase began, from 1."""

    def goal(self, physics: Physics, ids: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """The commanded x y z yaw [n, 4] to move towards, metres and radians."""

    def closed(self, phase: np.ndarray) -> np.ndarray:
        """Whether [n] the fingers should close."""


def hold(physics: Physics, ids: np.ndarray) -> np.ndarray:
    """The goal [n, 4] of staying where the command is."""
    return physics.commanded[ids][:, [0, 1, 2, 5]]


def motion_toward(physics: Physics, ids: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Proportional motion [n, 6] of the command towards `goal` [n, 4], with limited speed."""
    command = physics.commanded[ids]
    delta = GAIN * (goal[:, :3] - command[:, :3])
    speed = np.linalg.norm(delta[:, :2], axis=1, keepdims=True)
    delta[:, :2] *= np.minimum(1.0, SPEED_XY / np.maximum(speed, 1e-9))
    delta[:, 2] = np.clip(delta[:, 2], -SPEED_Z, SPEED_Z)
    level = np.clip(-GAIN * command[:, 3:5], -SPEED_YAW, SPEED_YAW)
    turn = np.clip(GAIN * wrap_angle(goal[:, 3:4] - command[:, 5:6]), -SPEED_YAW, SPEED_YAW)
    return np.concatenate([delta, level, turn], axis=1)
