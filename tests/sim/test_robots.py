"""Kinematics: golden poses of the Panda, inverse against forward, ours against MuJoCo's."""

import mujoco
import numpy as np
import pytest

from sim.robots.gantry import Gantry
from sim.robots.panda import LOWER, UPPER, Panda, forward_kinematics
from sim.robots.rotations import (
    multiply_quats,
    quat_to_matrix,
    quat_to_yaw,
    rpy_to_quat,
    wrap_angle,
)
from sim.scenes.tabletop import build
from sim.workspace import POSE_HIGH, POSE_LOW


def test_panda_stretched_upwards():
    # All joints zero: x = a7 = 0.088, z = 0.333 + 0.316 + 0.384 - (flange + tcp), the hand pointing
    # down.
    position, rotation, _ = forward_kinematics(np.zeros((1, 7)))
    np.testing.assert_allclose(position[0], [0.088, 0.0, 1.033 - 0.107 - 0.1034], atol=1e-12)
    np.testing.assert_allclose(
        rotation[0, :, 2], [0, 0, 1], atol=1e-12
    )  # the tcp's z points up when the hand points down


def random_poses(n: int, tilt: float = 0.0) -> np.ndarray:
    """Poses all over what may be commanded, with a share `tilt` of the largest roll and pitch."""
    return np.random.default_rng(0).uniform(POSE_LOW, POSE_HIGH, (n, 6)) * [1, 1, 1, tilt, tilt, 1]


def pose_errors(pose: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    position, rotation, _ = forward_kinematics(q)
    turned = np.abs(rotation - quat_to_matrix(rpy_to_quat(pose[:, 3:]))).max(axis=(1, 2))
    return np.linalg.norm(position - pose[:, :3], axis=1), turned


def test_panda_inverse_kinematics_reach_every_upright_pose():
    pose = random_poses(500)
    q = Panda().inverse_kinematics(pose)
    moved, turned = pose_errors(pose, q)
    assert max(moved.max(), turned.max()) < 1e-6
    assert ((np.array(LOWER) < q) & (q < np.array(UPPER))).all()


def test_panda_inverse_kinematics_reach_nearly_every_tilted_pose():
    pose = random_poses(500, tilt=0.5)
    moved, turned = pose_errors(pose, Panda().inverse_kinematics(pose))
    assert ((moved < 1e-4) & (turned < 1e-3)).mean() > 0.99  # the rest meet the last joint's limit


def test_inverse_kinematics_do_not_depend_on_the_company():
    pose, panda = random_poses(37), Panda()
    together = panda.inverse_kinematics(pose)
    for i in (0, 5, 36):
        np.testing.assert_array_equal(panda.inverse_kinematics(pose[i : i + 1])[0], together[i])


@pytest.mark.parametrize("robot", [Panda(), Gantry()], ids=lambda robot: robot.name)
def test_mujoco_agrees(robot):
    model = build(robot, 1, 1).model
    data = mujoco.MjData(model)
    for pose in random_poses(5) * np.where(robot.mask > 0, 1, 0):
        pose = np.clip(pose, POSE_LOW, POSE_HIGH)
        for name, value in zip(
            robot.arm_joints, robot.inverse_kinematics(pose[None])[0], strict=True
        ):
            data.joint(name).qpos = value
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(data.site("tcp").xpos, pose[:3], atol=1e-6)
        expected = quat_to_matrix(rpy_to_quat(pose[None, 3:]))[0]
        np.testing.assert_allclose(data.site("tcp").xmat.reshape(3, 3), expected, atol=1e-6)


def test_panda_jacobian_is_the_derivative():
    q = np.random.default_rng(1).uniform(-1, 1, (1, 7))
    position, _, jacobian = forward_kinematics(q)
    for i in range(7):
        step = np.zeros((1, 7))
        step[0, i] = 1e-6
        np.testing.assert_allclose(
            (forward_kinematics(q + step)[0] - position)[0] / 1e-6, jacobian[0, :3, i], atol=1e-5
        )


def test_rotations_by_hand():
    # Yaw of 90 degrees: (cos 45, 0, 0, sin 45), x goes to y. Roll of 180 degrees: (0, 1, 0, 0), z
    # goes to -z.
    quat = rpy_to_quat(np.array([[0, 0, np.pi / 2], [np.pi, 0, 0]]))
    np.testing.assert_allclose(quat, [[np.sqrt(0.5), 0, 0, np.sqrt(0.5)], [0, 1, 0, 0]], atol=1e-12)
    matrix = quat_to_matrix(quat)
    np.testing.assert_allclose(matrix[0] @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(matrix[1] @ [0, 0, 1], [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(quat_to_yaw(quat[:1]), [np.pi / 2])
    twice = multiply_quats(quat[:1], quat[:1])  # two quarter turns: half a turn about z
    np.testing.assert_allclose(twice, [[0, 0, 0, 1]], atol=1e-12)


def test_wrap_angle_with_a_period_per_row():
    got = wrap_angle(np.array([1.0, 1.0, -3.0]), np.array([np.pi / 2, np.pi, 2 * np.pi]))
    np.testing.assert_allclose(got, [1.0 - np.pi / 2, 1.0, -3.0])


def test_panda_weighs_what_was_identified():
    # Gaz et al. (2019): 4.970684 + 0.646926 + 3.228604 + 3.587895 + 1.225946 + 1.666555 + 0.735522
    # = 16.062132 kg.
    model = build(Panda(), 1, 1).model
    assert sum(model.body(f"link{i}").mass[0] for i in range(1, 8)) == pytest.approx(
        16.062132, abs=1e-4
    )
