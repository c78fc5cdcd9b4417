"""The protocol of a robot: its model, its inverse kinematics and its command."""

from __future__ import annotations

from typing import Protocol

import mujoco
import numpy as np


class Robot(Protocol):
    """A robot arm with the shared gripper, commanded by the pose of its `tcp`.

    The pose is expressed in the base frame, which is the world's.

    Attributes:
        name: its name in settings.
        timestep: physics step in seconds.
        integrator: MuJoCo's integrator.
        arm_joints: names of the joints that `inverse_kinematics` gives, in its order.
        mask: float64 [6], 1 where the robot follows x y z roll pitch yaw, else 0.
    """

    name: str
    timestep: float
    integrator: mujoco.mjtIntegrator
    arm_joints: tuple[str, ...]
    mask: np.ndarray

    def attach(self, spec: mujoco.MjSpec) -> None:
        """Add the robot to the scene: bodies, joints, actuators, and the site "tcp"."""

    def inverse_kinematics(self, pose: np.ndarray) -> np.ndarray:
        """Joint positions [n, len(arm_joints)] of the tcp pose [n, 6], metres and radians."""

    def command(
        self, model: mujoco.MjModel, arrays: CommandArrays, ids: np.ndarray, pose: np.ndarray
    ) -> None:
        """Make `pose` [n, 6] the commanded tcp pose of the simulations `ids`."""


class CommandArrays(Protocol):
    """The live state arrays of a batch that a command may write."""

    ctrl: np.ndarray
    mocap_pos: np.ndarray
    mocap_quat: np.ndarray
