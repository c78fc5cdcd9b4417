"""The phases that taking hold of the target block is made of: approach, grasp, lift.

Approach and descent are one motion down a funnel: the height to go to falls with the horizontal
distance left.
"""

from __future__ import annotations

import numpy as np

from sim.physics import Physics
from sim.task import TARGET

APPROACH, GRASP, LIFT = range(3)

HOVER = 0.07
NEAR_XY, NEAR_Z, NEAR_YAW = 0.006, 0.006, 0.12
GRASP_STEPS = 8
GRASP_DEPTH = -0.002
"""The tcp aims this far (metres) relative to the block's centre."""
OPEN_WIDE = 0.06


def advance_grasp(
    physics: Physics, ids: np.ndarray, phase: np.ndarray, timer: np.ndarray, held: np.ndarray
) -> np.ndarray:
    """Phases [n] after what is seen of the grasp: closing where the block is between the fingers,
    lifting when held."""
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
    """The way [n, 4] down the funnel onto the target block, the fingers turned to its sides."""
    command, block = physics.commanded[ids], physics.block_position(ids, TARGET)
    yaw = physics.aligned_yaw(ids, TARGET)
    distance = np.linalg.norm((block - command[:, :3])[:, :2], axis=1)
    turn = np.abs(yaw - command[:, 5])
    height = np.clip(
        3.0 * np.maximum(distance - NEAR_XY, 0) + 0.3 * np.maximum(turn - NEAR_YAW, 0), 0, HOVER
    )
    height = np.maximum(
        height, np.where(physics.gripper_opening(ids) < OPEN_WIDE, HOVER, 0.0) * (distance < 0.05)
    )
    return np.concatenate(
        [block[:, :2], (block[:, 2] + GRASP_DEPTH + height)[:, None], yaw[:, None]], axis=1
    )
