"""Franka Emika Panda: true kinematics, primitive visuals, a weld to a commanded mocap body.

Kinematics: modified Denavit-Hartenberg parameters and joint limits from Franka's published robot
specification (Franka Control Interface documentation). Link masses: Gaz, Cognetti, Oliva, Robuffo
Giordano, De Luca (2019), "Dynamic identification of the Franka Emika Panda robot", table of
estimated masses.
"""

from __future__ import annotations

import math

import mujoco
import numpy as np

from sim.robots.gripper import DARK, GREY, TCP_OFFSET, WHITE, add_gripper, add_visual
from sim.robots.robot import CommandArrays
from sim.robots.rotations import quat_to_matrix, rpy_to_quat

# a_{i-1} (m), alpha_{i-1} (rad), d_i (m) of joints 1..7 in Craig's convention.
DH_A = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088)
DH_ALPHA = (0.0, -math.pi / 2, math.pi / 2, math.pi / 2, -math.pi / 2, math.pi / 2, math.pi / 2)
DH_D = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0)
FLANGE = 0.107
LOWER = (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973)
UPPER = (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)
MASS = (4.970684, 0.646926, 3.228604, 3.587895, 1.225946, 1.666555, 0.735522)
HOME = (0.0, 0.12, 0.0, -2.27, 0.0, 2.39, math.pi / 4)
"""Joint angles near the middle of the workspace, hand down: the inverse kinematics starts there."""

CAPSULE = mujoco.mjtGeom.mjGEOM_CAPSULE
CYLINDER = mujoco.mjtGeom.mjGEOM_CYLINDER
# Per link: (from, to, radius, colour, share of the link's mass) capsules in the link's own frame.
CAPSULES = (
    (((0, 0, -0.19), (0, 0, 0.0), 0.058, WHITE, 1.0),),
    (
        ((0, 0, -0.04), (0, 0, 0.04), 0.057, WHITE, 0.5),
        ((0, -0.05, 0), (0, -0.19, 0), 0.055, WHITE, 0.5),
    ),
    (
        ((0, 0, -0.1), (0, 0, -0.03), 0.054, WHITE, 0.5),
        ((0.0825, 0.03, 0), (0.0825, -0.03, 0), 0.05, WHITE, 0.5),
    ),
    (
        ((0, 0, -0.03), (0, 0, 0.03), 0.05, WHITE, 0.5),
        ((-0.0825, 0.06, 0), (-0.0825, 0.1, 0), 0.05, WHITE, 0.5),
    ),
    (
        ((0, 0, -0.25), (0, 0.03, -0.12), 0.05, WHITE, 0.6),
        ((0, 0.05, -0.1), (0, 0.06, 0.0), 0.035, WHITE, 0.4),
    ),
    (
        ((0, 0, -0.05), (0, 0, 0.04), 0.045, WHITE, 0.5),
        ((0.03, 0, 0), (0.088, 0.005, 0), 0.042, WHITE, 0.5),
    ),
    (((0, 0, 0.03), (0, 0, 0.06), 0.04, GREY, 1.0),),
)


class Panda:
    """Seven hinges without motors; a weld ties the tcp to a mocap body at the commanded pose.

    The weld acts as a stiff Cartesian controller. It keeps every grasp at a physics step of 5 ms,
    at a third of the cost of joint servos with inverse kinematics at 2.5 ms.
    """

    name = "panda"
    timestep = 0.005
    integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    arm_joints: tuple[str, ...] = tuple(f"joint{i}" for i in range(1, 8))
    mask = np.ones(6)

    def attach(self, spec: mujoco.MjSpec) -> None:
        """Add base, seven links, hand, and the weld to the mocap body `hand_target`."""
        body = spec.worldbody.add_body(name="link0")
        add_visual(body, CYLINDER, size=[0.07, 0.07, 0], pos=[0, 0, 0.07], rgba=DARK)
        for i in range(7):
            body = body.add_body(name=f"link{i + 1}", gravcomp=1, **_link_frame(i))
            body.add_joint(
                name=f"joint{i + 1}",
                type=mujoco.mjtJoint.mjJNT_HINGE,
                axis=[0, 0, 1],
                range=[LOWER[i], UPPER[i]],
                limited=True,
                damping=[10.0, 0, 0],
                armature=0.1,
            )
            for start, end, radius, color, share in CAPSULES[i]:
                add_visual(
                    body,
                    CAPSULE,
                    fromto=[*start, *end],
                    size=[radius, 0, 0],
                    rgba=color,
                    mass=share * MASS[i],
                )
        turn = [math.cos(-math.pi / 8), 0, 0, math.sin(-math.pi / 8)]
        hand = body.add_body(name="hand", pos=[0, 0, FLANGE], quat=turn, gravcomp=1)
        add_gripper(spec, hand)
        target = spec.worldbody.add_body(name="hand_target", mocap=True, pos=[0.5, 0, 0.3])
        target.add_site(name="hand_target", size=[0.005, 0.005, 0.005], group=5)
        weld = spec.add_equality(type=mujoco.mjtEq.mjEQ_WELD, objtype=mujoco.mjtObj.mjOBJ_SITE)
        weld.name1 = "tcp"
        weld.name2 = "hand_target"
        weld.solref = [0.02, 1]

    def inverse_kinematics(self, pose: np.ndarray) -> np.ndarray:
        """Joint angles [n, 7] of the tcp pose [n, 6], by Newton's method from HOME.

        Joint 3 stays at zero, so that one solution is near.
        """
        target = quat_to_matrix(rpy_to_quat(pose[:, 3:]))
        q = np.tile(np.array(HOME), (len(pose), 1))
        q[:, 0] = np.arctan2(pose[:, 1], pose[:, 0])
        q[:, 6] += q[:, 0] - pose[:, 5]
        for _ in range(NEWTON_STEPS):
            position, rotation, jacobian = forward_kinematics(q)
            turn = 0.5 * np.cross(rotation, target, axis=1).sum(axis=2)
            error = np.concatenate([pose[:, :3] - position, turn], axis=1)
            reduced = jacobian[:, :, FREE_JOINTS]
            step = np.linalg.solve(reduced, error[:, :, None])[:, :, 0]
            size = np.abs(step).max(axis=1, keepdims=True)
            q[:, FREE_JOINTS] += step * np.minimum(
                1.0, LONGEST_STEP / np.maximum(size, LONGEST_STEP)
            )
        return np.clip(q, LOWER, UPPER)

    def command(
        self, model: mujoco.MjModel, arrays: CommandArrays, ids: np.ndarray, pose: np.ndarray
    ) -> None:
        """Move the mocap body."""
        column = model.body("hand_target").mocapid[0]
        arrays.mocap_pos[ids, column] = pose[:, :3]
        arrays.mocap_quat[ids, column] = rpy_to_quat(pose[:, 3:])


NEWTON_STEPS = 12
LONGEST_STEP = 0.4
"""Largest Newton step, radians: a full step from far away may jump to another solution."""
FREE_JOINTS = [0, 1, 3, 4, 5, 6]


def _link_frame(i: int) -> dict[str, list[float]]:
    """Pose of link i in its parent: Rx(alpha), then the offsets a along x and d along the new z."""
    half = DH_ALPHA[i] / 2
    sine = math.sin(DH_ALPHA[i])
    cosine = math.cos(DH_ALPHA[i])
    return {
        "pos": [DH_A[i], -sine * DH_D[i], cosine * DH_D[i]],
        "quat": [math.cos(half), math.sin(half), 0.0, 0.0],
    }


def forward_kinematics(q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position [n, 3] and rotation [n, 3, 3] of the tcp, and its geometric Jacobian [n, 6, 7].

    The Jacobian's rows are linear, then angular.
    """
    n = len(q)
    position = np.zeros((n, 3))
    rotation = np.tile(np.eye(3), (n, 1, 1))
    axes = []
    origins = []
    for i in range(7):
        frame = _link_frame(i)
        position = position + rotation @ np.array(frame["pos"])
        fixed = quat_to_matrix(np.array([frame["quat"]]))[0]
        sine = np.sin(q[:, i])
        cosine = np.cos(q[:, i])
        spin = np.zeros((n, 3, 3))
        spin[:, 0, 0] = cosine
        spin[:, 0, 1] = -sine
        spin[:, 1, 0] = sine
        spin[:, 1, 1] = cosine
        spin[:, 2, 2] = 1.0
        rotation = rotation @ fixed @ spin
        axes.append(rotation[:, :, 2])
        origins.append(position)
    position = position + rotation @ np.array([0, 0, FLANGE + TCP_OFFSET])
    # Hand turned by -pi/4 about z, then the tcp frame by pi about x.
    c = math.sqrt(0.5)
    rotation = rotation @ np.array([[c, -c, 0], [-c, -c, 0], [0, 0, -1.0]])
    linear = [np.cross(axis, position - origin) for axis, origin in zip(axes, origins, strict=True)]
    jacobian = np.stack(
        [np.concatenate(pair, axis=1) for pair in zip(linear, axes, strict=True)], axis=2
    )
    return position, rotation, jacobian
