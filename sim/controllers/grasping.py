"""The phases of taking hold of the target block: approach, grasp, lift.

Approach and descent are one motion down a funnel: the commanded height falls with the remaining
horizontal distance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim.task import TARGET

if TYPE_CHECKING:
    from sim.physics import Physics

APPROACH, GRASP, LIFT = range(3)

HOVER_HEIGHT = 0.07
NEAR_XY = 0.006
NEAR_Z = 0.006
NEAR_YAW = 0.12
GRASP_STEPS = 8
"""Control steps after which closing fingers that hold nothing open again."""
GRASP_DEPTH = -0.002
"""Height (metres) of the tcp's goal above the block's centre."""
OPEN_WIDE = 0.06
"""Distance between the fingers (metres) above which they are open enough to descend."""
HOVER_DISTANCE = 0.05
"""Horizontal distance (metres) within which fingers that are not open keep the hand up."""


def advance_grasp(
    physics: Physics, ids: np.ndarray, phase: np.ndarray, timer: np.ndarray, held: np.ndarray
) -> np.ndarray:
    """The next phases [n]: grasp with the block between the fingers, lift once it is held [n]."""
    offset = physics.hand_to_block(ids, TARGET)
    turn = physics.aligned_yaw(ids, TARGET) - physics.commanded[ids, 5]
    around = (np.linalg.norm(offset[:, :2], axis=1) < NEAR_XY + 0.003) & (np.abs(turn) < NEAR_YAW)
    around &= np.abs(offset[:, 2] - GRASP_DEPTH) < NEAR_Z
    new = phase.copy()
    new[held & (phase < LIFT)] = LIFT
    new[(phase == APPROACH) & around & ~held & (physics.gripper_opening(ids) > OPEN_WIDE)] = GRASP
    new[(phase == GRASP) & ~held & (timer > GRASP_STEPS)] = APPROACH
    return new


def approach_goal(physics: Physics, ids: np.ndarray) -> np.ndarray:
    """The goal [n, 4] down the funnel onto the target block, the fingers turned to its sides."""
    command = physics.commanded[ids]
    block = physics.block_position(ids, TARGET)
    yaw = physics.aligned_yaw(ids, TARGET)
    distance = np.linalg.norm((block - command[:, :3])[:, :2], axis=1)
    turn = np.abs(yaw - command[:, 5])
    funnel = 3.0 * np.maximum(distance - NEAR_XY, 0) + 0.3 * np.maximum(turn - NEAR_YAW, 0)
    height = np.clip(funnel, 0, HOVER_HEIGHT)
    # Closed fingers would land on the block: stay above it until they are open.
    still_closed = np.where(physics.gripper_opening(ids) < OPEN_WIDE, HOVER_HEIGHT, 0.0)
    height = np.maximum(height, still_closed * (distance < HOVER_DISTANCE))
    z = block[:, 2] + GRASP_DEPTH + height
    return np.concatenate([block[:, :2], z[:, None], yaw[:, None]], axis=1)
