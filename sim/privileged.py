"""What only the simulator knows: the numbers behind a scene, for critics that help to train and
never act."""

from __future__ import annotations

import numpy as np

from sim.physics import Physics
from sim.scenes.objects import BLOCK_SHAPES
from sim.task import TARGET

NEAR = 0.025
"""Metres: differences of this size decide whether fingers close on a block, so they are shown
enlarged."""


def privileged_state(physics: Physics, ids: np.ndarray) -> np.ndarray:
    """The scenes of `ids` as numbers [n, s] of about 1: hand and fingers, where every block and pad
    is from the hand and the first pad from the named block, how far to turn, what is held, shapes,
    speed. Metres come times 10.
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
    columns = [
        *(
            10 * part
            for part in (
                physics.commanded[ids],
                hand[:, 2:],
                block[:, 2:],
                *to_block,
                *to_pad,
                left,
            )
        ),
        *(np.tanh(part / NEAR) for part in (to_block[TARGET], left)),
        np.stack([np.cos(turn), np.sin(turn), np.cos(2 * turn), np.sin(2 * turn)], axis=1),
        np.eye(len(BLOCK_SHAPES))[physics.looks.block_shape[ids, TARGET]],
        *(part[:, None] * 1.0 for part in (physics.closing[ids], physics.grasped(ids, TARGET))),
        *(
            10 * part[:, None]
            for part in (2 * physics.gripper_opening(ids), physics.finger_speed(ids))
        ),
        10 * physics.block_speed(ids, TARGET)[:, None],
    ]
    return np.concatenate(columns, axis=1).astype(np.float32)
