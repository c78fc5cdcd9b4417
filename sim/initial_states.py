"""States written at a reset: the start of an episode, or a random scene for questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sim.randomize import Randomization, Scenes, UniformNumbers, draw_uniform, sample_scenes
from sim.scenes.objects import BLOCK_HALF_HEIGHT
from sim.workspace import CENTER, MAX_OPENING

if TYPE_CHECKING:
    from sim.physics import Physics

HELD_SHARE = 0.35
"""Share of random scenes in which a block is held."""
NEAR_SHARE = 0.25
"""Share of random scenes in which the open hand is near a block."""
PAD_SHARE = 0.4
"""Share of random scenes with a pad beside or under the block."""
PAD_REACH = 0.08
"""Largest distance of that pad from the block, metres."""
OPEN_SHARE = 0.75
"""Share of random scenes with open fingers, of those without a held block."""
GRASP_SQUEEZE = 0.0004
"""Metres that fingers around a held block are closer than the block is wide."""
HELD_OFFSET = 0.006
"""Largest offset of a held block from the tcp, metres."""
CLEAR_HEIGHT = 0.05
"""Least height (metres) of a hand that is not near a block: fingers and blocks never overlap."""

Arrange = Callable[[Scenes, UniformNumbers], Scenes]
"""A change of sampled scenes that suits a task."""


def start(
    physics: Physics,
    rngs: list[np.random.Generator],
    ids: np.ndarray,
    ranges: Randomization,
    arrange: Arrange | None = None,
) -> None:
    """All objects on the table, the hand open above it."""
    scenes, numbers = _sample(physics, rngs, ranges)
    if arrange is not None:
        scenes = arrange(scenes, numbers)
    _write(physics, ids, scenes)
    n = len(ids)
    physics.place_hand(ids, scenes.hand_pose, np.full(n, MAX_OPENING), np.zeros(n, dtype=bool))


def start_anywhere(
    physics: Physics, rngs: list[np.random.Generator], ids: np.ndarray, ranges: Randomization
) -> None:
    """The hand anywhere, open or closed.

    In a third of the scenes a block is held, in a quarter the open hand is near one. In two of five
    a pad lies under that block or a few centimetres off, as at the end of episodes or after a slip.
    """
    scenes, numbers = _sample(physics, rngs, ranges)
    _write(physics, ids, scenes)
    block = np.floor(numbers.take(1)[:, 0] ** 2 * physics.tabletop.num_blocks).astype(np.int64)
    kind = numbers.take(1)[:, 0]
    held = kind < HELD_SHARE
    near = (kind >= HELD_SHARE) & (kind < HELD_SHARE + NEAR_SHARE)
    pose = _random_poses(numbers, ranges)
    target = scenes.block_xy[np.arange(len(ids)), block]
    # Near a block the offset from it shrinks with the height, as in a descent.
    pose[near, :2] = target[near] + 0.4 * (pose[near, :2] - CENTER) * (pose[near, 2:3] - 0.01) / 0.2
    physics.commanded[ids] = pose
    aligned = physics.aligned_yaw(ids, block)
    pose[near | held, 5] = aligned[near | held]
    pose[:, 2] = np.where(near | held, pose[:, 2], np.maximum(pose[:, 2], CLEAR_HEIGHT))
    wide = numbers.take(1)[:, 0] < OPEN_SHARE
    opening = np.where(wide | near, MAX_OPENING, 0.0)
    width = physics.grasp_width(ids, block) - GRASP_SQUEEZE
    physics.place_hand(ids, pose, np.where(held, width, opening), held | ~(wide | near))
    pose = physics.commanded[ids]  # clipped to the limits, and without what the robot cannot do
    position = pose[:, :3] + numbers.between(-HELD_OFFSET, HELD_OFFSET, 3) * np.array(
        [1.0, 0.0, 1.0]
    )
    position[:, 2] = np.maximum(position[:, 2], BLOCK_HALF_HEIGHT)
    yaw = physics.block_yaw(ids, block) + pose[:, 5] - aligned
    if held.any():
        physics.place_block(ids[held], block[held], position[held], yaw[held])
    _move_pads(physics, ids, numbers, physics.block_position(ids, block)[:, :2], scenes)


def _move_pads(
    physics: Physics, ids: np.ndarray, numbers: UniformNumbers, position: np.ndarray, scenes: Scenes
) -> None:
    """Move one pad to `position` [n, 2] or beside it, in a share of the environments.

    The first pad is moved most often: it is the one that instructions name.
    """
    chance, angle, reach, which = numbers.take(4).T
    radius = PAD_REACH * reach
    pad_xy = position + radius[:, None] * np.stack(
        [np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)], axis=1
    )
    pad = np.floor(which**2 * physics.tabletop.num_pads).astype(np.int64)
    chosen = np.flatnonzero(chance < PAD_SHARE)
    if len(chosen):
        yaw = scenes.pad_yaw[chosen, pad[chosen]]
        physics.place_pad(ids[chosen], pad[chosen], pad_xy[chosen], yaw)


def _sample(
    physics: Physics, rngs: list[np.random.Generator], ranges: Randomization
) -> tuple[Scenes, UniformNumbers]:
    num_blocks = physics.tabletop.num_blocks
    num_pads = physics.tabletop.num_pads
    numbers = draw_uniform(rngs, num_blocks + num_pads)
    return sample_scenes(numbers, ranges, num_blocks, num_pads), numbers


def _write(physics: Physics, ids: np.ndarray, scenes: Scenes) -> None:
    physics.set_appearance(ids, scenes.looks, scenes.around)
    height = np.full((len(ids), 1), BLOCK_HALF_HEIGHT)
    for i in range(physics.tabletop.num_blocks):
        position = np.concatenate([scenes.block_xy[:, i], height], axis=1)
        physics.place_block(ids, i, position, scenes.block_yaw[:, i])
    for i in range(physics.tabletop.num_pads):
        physics.place_pad(ids, i, scenes.pad_xy[:, i], scenes.pad_yaw[:, i])


def _random_poses(numbers: UniformNumbers, ranges: Randomization) -> np.ndarray:
    """Hand poses [n, 6] all over the workspace."""
    reach = ranges.object_extent + 0.02
    u = numbers.take(4)
    pose = np.zeros((len(u), 6))
    pose[:, :2] = CENTER + (2 * u[:, :2] - 1) * reach
    pose[:, 2] = 0.02 + (ranges.hand_height[1] - 0.02) * u[:, 2]
    pose[:, 5] = (2 * u[:, 3] - 1) * (np.pi / 4)
    return pose
