"""Rotations, vectorised; roll, pitch and yaw mean R = Rz(yaw) Ry(pitch) Rx(roll)."""

from __future__ import annotations

import numpy as np


def rpy_to_quat(rpy: np.ndarray) -> np.ndarray:
    """Unit quaternion [n, 4] (w x y z) of roll, pitch, yaw [n, 3].

    q = q_z(yaw) q_y(pitch) q_x(roll).
    """
    half = 0.5 * rpy
    cr, cp, cy = (np.cos(half[:, i]) for i in range(3))
    sr, sp, sy = (np.sin(half[:, i]) for i in range(3))
    w = cr * cp * cy + sr * sp * sy
    x = sr * cp * cy - cr * sp * sy
    y = cr * sp * cy + sr * cp * sy
    z = cr * cp * sy - sr * sp * cy
    return np.stack([w, x, y, z], axis=1)


def quat_to_matrix(quat: np.ndarray) -> np.ndarray:
    """Rotation matrix [n, 3, 3] of unit quaternions [n, 4] (w x y z)."""
    w, x, y, z = (quat[:, i] for i in range(4))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def quat_to_yaw(quat: np.ndarray) -> np.ndarray:
    """Rotation [n] about the vertical of unit quaternions [n, 4], in (-pi, pi]."""
    w, x, y, z = (quat[:, i] for i in range(4))
    return np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def wrap_angle(angle: np.ndarray, period: float | np.ndarray = 2 * np.pi) -> np.ndarray:
    """The equivalent of `angle` in [-period/2, period/2)."""
    return (angle + period / 2) % period - period / 2


def multiply_quats(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Hamilton product [n, 4] (w x y z): the rotation `second`, then `first`."""
    w1, x1, y1, z1 = (first[:, i] for i in range(4))
    w2, x2, y2, z2 = (second[:, i] for i in range(4))
    w = w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2
    x = w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2
    y = w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2
    z = w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2
    return np.stack([w, x, y, z], axis=1)
