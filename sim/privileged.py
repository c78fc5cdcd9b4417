"""Privileged state: ground truth as numbers, for critics that are used in training only."""

from __future__ import annotations

import numpy as np

from sim.physics import Physics
from sim.scenes.objects import BLOCK_SHAPES
from sim.task import TARGET

NEAR = 0.025
"""Metres: offsets of this size decide whether fingers close on a block, so they come enlarged
too."""


def privileged_state(physics: Physics, ids: np.ndarray) -> np.ndarray:
    """The scenes of `ids` as numbers [n, s] of magnitude 1; metres are multiplied by 10.

    Hand and fingers; offsets from the hand to every block and pad, and from the named block to the
    first pad; the yaw that is left to turn; whether the block is held, its shape and its speed.
    """
    block = physics.block_position(ids, TARGET)
    pad = physics.pad_position(ids, TARGET)
    hand = physics.hand_position(ids)
    turn = physics.aligned_yaw(ids, TARGET) - physics.commanded[ids, 5]
    to_block = [physics.hand_to_block(ids, i) for i in range(physics.tabletop.num_blocks)]
    to_pad = [
        physics.pad_position(ids, i)[:, :2] - hand[:, :2] for i in range(physics.tabletop.num_pads)
    ]
    left = (pad - block)[:, :2]
    enlarged = [np.tanh(offset / NEAR) for offset in (to_block[TARGET], left)]
    metres = [physics.commanded[ids], hand[:, 2:], block[:, 2:], *to_block, *to_pad, left]
    columns = [
        *(10 * part for part in metres),
        *enlarged,
        # A half turn leaves a block's sides where they were: the doubled angle shows that.
        np.stack([np.cos(turn), np.sin(turn), np.cos(2 * turn), np.sin(2 * turn)], axis=1),
        np.eye(len(BLOCK_SHAPES))[physics.looks.block_shape[ids, TARGET]],
        physics.closing[ids][:, None] * 1.0,
        physics.grasped(ids, TARGET)[:, None] * 1.0,
        10 * (2 * physics.gripper_opening(ids))[:, None],
        10 * physics.finger_speed(ids)[:, None],
        10 * physics.block_speed(ids, TARGET)[:, None],
    ]
    return np.concatenate(columns, axis=1).astype(np.float32)
