"""A gantry: x, y and z slides and a yaw hinge carry the shared hand; no roll and pitch.

It is the robot that simulates fastest.
"""

from __future__ import annotations

import mujoco
import numpy as np

from sim.robots.gripper import GREY, TCP_OFFSET, add_gripper, add_visual
from sim.robots.robot import CommandArrays

SLIDE = mujoco.mjtJoint.mjJNT_SLIDE
HINGE = mujoco.mjtJoint.mjJNT_HINGE


class Gantry:
    """Four position servos: the joint coordinates are the tcp's x, y, z (metres) and yaw
    (radians)."""

    name = "gantry"
    timestep = 0.01
    integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    arm_joints: tuple[str, ...] = ("x", "y", "z", "yaw")
    mask = np.array([1, 1, 1, 0, 0, 1], dtype=np.float64)

    def attach(self, spec: mujoco.MjSpec) -> None:
        """Add the nested carriages x, y, z and yaw; joints of zero put the tcp at the origin."""
        x = spec.worldbody.add_body(name="gantry_x", gravcomp=1)
        x.add_joint(name="x", type=SLIDE, axis=[1, 0, 0], damping=[40, 0, 0])
        add_visual(
            x,
            mujoco.mjtGeom.mjGEOM_SPHERE,
            size=[0.001, 0, 0],
            pos=[0, 0, 1.0],
            mass=0.3,
            rgba=GREY,
        )
        y = x.add_body(name="gantry_y", gravcomp=1)
        y.add_joint(name="y", type=SLIDE, axis=[0, 1, 0], damping=[40, 0, 0])
        add_visual(
            y,
            mujoco.mjtGeom.mjGEOM_SPHERE,
            size=[0.001, 0, 0],
            pos=[0, 0, 1.0],
            mass=0.3,
            rgba=GREY,
        )
        z = y.add_body(name="gantry_z", gravcomp=1)
        z.add_joint(name="z", type=SLIDE, axis=[0, 0, 1], damping=[40, 0, 0])
        add_visual(
            z,
            mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=[0.02, 0.25, 0],
            pos=[0, 0, TCP_OFFSET + 0.235],
            mass=0.3,
            rgba=GREY,
        )
        hand = z.add_body(name="hand", pos=[0, 0, TCP_OFFSET], quat=[0, 1, 0, 0], gravcomp=1)
        # The hand is upside down in its parent, so its yaw axis is its own -z.
        hand.add_joint(name="yaw", type=HINGE, axis=[0, 0, -1], damping=[0.5, 0, 0], armature=0.01)
        add_gripper(spec, hand)
        for joint, kp in (("x", 800.0), ("y", 800.0), ("z", 800.0), ("yaw", 10.0)):
            actuator = spec.add_actuator(
                name=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT, target=joint
            )
            actuator.set_to_position(kp=kp)

    def inverse_kinematics(self, pose: np.ndarray) -> np.ndarray:
        """The joints are the pose: [n, 6] -> x y z yaw [n, 4]."""
        return pose[:, [0, 1, 2, 5]]

    def command(
        self, model: mujoco.MjModel, arrays: CommandArrays, ids: np.ndarray, pose: np.ndarray
    ) -> None:
        """Servo targets are the pose itself."""
        columns = [model.actuator(name).id for name in self.arm_joints]
        arrays.ctrl[np.ix_(ids, columns)] = pose[:, [0, 1, 2, 5]]
