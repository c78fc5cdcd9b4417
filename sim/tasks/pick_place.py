"""Pick and place: "put the red cube on the blue square", among distractors that differ in colour or shape."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim import rewards
from sim.looks import BLOCK_SHAPE_NAMES, COLOR_NAMES, PAD_SHAPE_NAMES
from sim.physics import GRASP_WIDTH, Physics
from sim.randomize import Randomization, Scenes, UniformNumbers, draw_uniform, sample_scenes
from sim.robots.gripper import MAX_OPENING
from sim.scenes.objects import BLOCK_HALF_HEIGHT
from sim.scenes.tabletop import CENTER

PLACED_DISTANCE = 0.03
"""Success: block centre to pad centre on the table, metres."""
RELEASED_OPENING = 0.05
RETRACTED_DISTANCE = 0.05
TARGET = 0
"""Block 0 and pad 0 are the ones that the instruction names."""


class PickPlace:
    """The target block must lie on the target pad, released, with the hand withdrawn."""

    name = "pick_place"
    reward_names: tuple[str, ...] = ("reach", "grasp", "lift", "place", "success")

    def __init__(self, ranges: Randomization, num_distractors: int) -> None:
        self.ranges = ranges
        self.num_blocks = self.num_pads = 1 + num_distractors

    def initialise(self, physics: Physics, rngs: list[np.random.Generator], ids: np.ndarray) -> None:
        """All objects on the table, the hand open above it."""
        numbers = draw_uniform(rngs, self.num_blocks + self.num_pads)
        scenes = sample_scenes(numbers, self.ranges, self.num_blocks, self.num_pads)
        self._write(physics, ids, scenes)
        n = len(ids)
        physics.place_hand(ids, scenes.hand_pose, np.full(n, MAX_OPENING), np.zeros(n, dtype=bool))

    def initialise_anywhere(self, physics: Physics, rngs: list[np.random.Generator], ids: np.ndarray) -> None:
        """The hand anywhere, open or closed; in a quarter of the scenes a block is held, in a quarter nearly."""
        numbers = draw_uniform(rngs, self.num_blocks + self.num_pads)
        scenes = sample_scenes(numbers, self.ranges, self.num_blocks, self.num_pads)
        self._write(physics, ids, scenes)
        block = np.floor(numbers.take(1)[:, 0] ** 2 * self.num_blocks).astype(np.int64)
        kind = numbers.take(1)[:, 0]
        held, near = kind < HELD_SHARE, (kind >= HELD_SHARE) & (kind < HELD_SHARE + NEAR_SHARE)
        pose = _anywhere(numbers, self.ranges)
        rows = np.arange(len(ids))
        target = scenes.block_xy[rows, block]
        pose[near, :2] = target[near] + 0.4 * (pose[near, :2] - CENTER) * (pose[near, 2:3] - 0.01) / 0.2
        physics.commanded[ids] = pose
        aligned = physics.aligned_yaw(ids, block)
        pose[near | held, 5] = aligned[near | held]
        pose[:, 2] = np.where(near | held, pose[:, 2], np.maximum(pose[:, 2], CLEAR_HEIGHT))
        wide = numbers.take(1)[:, 0] < 0.75
        opening = np.where(wide | near, MAX_OPENING, 0.0)
        width = GRASP_WIDTH[physics.looks.block_shape[ids, block]] - 0.0004
        physics.place_hand(ids, pose, np.where(held, width, opening), held | ~(wide | near))
        pose = physics.commanded[ids]
        position = pose[:, :3] + numbers.between(-0.006, 0.006, 3) * np.array([1.0, 0.0, 1.0])
        position[:, 2] = np.maximum(position[:, 2], BLOCK_HALF_HEIGHT)
        turned = physics.block_yaw(ids, block) + pose[:, 5] - aligned
        if held.any():
            physics.place_block(ids[held], block[held], position[held], turned[held])

    def _write(self, physics: Physics, ids: np.ndarray, scenes: Scenes) -> None:
        physics.dress(ids, scenes.looks, scenes.around)
        height = np.full((len(ids), 1), BLOCK_HALF_HEIGHT)
        for i in range(self.num_blocks):
            position = np.concatenate([scenes.block_xy[:, i], height], axis=1)
            physics.place_block(ids, i, position, scenes.block_yaw[:, i])
        for i in range(self.num_pads):
            physics.place_pad(ids, i, scenes.pad_xy[:, i], scenes.pad_yaw[:, i])

    def instruction(self, physics: Physics, ids: np.ndarray) -> list[str]:
        """ "put the {colour} {shape} on the {colour} {shape}"."""
        looks = physics.looks
        columns = (looks.block_color, looks.block_shape, looks.pad_color, looks.pad_shape)
        names = (COLOR_NAMES, BLOCK_SHAPE_NAMES, COLOR_NAMES, PAD_SHAPE_NAMES)
        rows = zip(*([name[i] for i in column[ids, TARGET]] for column, name in zip(columns, names, strict=True)))
        return [
            f"put the {block_color} {block} on the {pad_color} {pad}" for block_color, block, pad_color, pad in rows
        ]

    def block_to_pad(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Vector [n, 2] along the table from the target block to the target pad, metres."""
        return (physics.pad_position(ids, TARGET) - physics.block_position(ids, TARGET))[:, :2]

    def success(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Block within 3 cm of the pad's centre and resting on the table, fingers open, tcp 5 cm from the block."""
        placed = np.linalg.norm(self.block_to_pad(physics, ids), axis=1) < PLACED_DISTANCE
        released = physics.gripper_opening(ids) > RELEASED_OPENING
        retracted = np.linalg.norm(physics.hand_to_block(ids, TARGET), axis=1) > RETRACTED_DISTANCE
        return placed & physics.resting(ids, TARGET) & released & retracted

    def reward_terms(self, physics: Physics, ids: np.ndarray, best: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """reach, grasp, lift, place, success; see `sim.rewards`."""
        held = physics.grasped(ids, TARGET)
        height = physics.block_position(ids, TARGET)[:, 2] - BLOCK_HALF_HEIGHT
        return {
            "reach": rewards.reach(physics.hand_to_block(ids, TARGET)),
            "grasp": rewards.grasp(held),
            "lift": rewards.lift(held, height),
            "place": rewards.place(best["lift"] > 0.5, self.block_to_pad(physics, ids)),
            "success": rewards.success(self.success(physics, ids)),
        }


HELD_SHARE = 0.25
NEAR_SHARE = 0.25
CLEAR_HEIGHT = 0.05
"""A hand that is nowhere near a block stays above them, so that fingers and blocks never overlap."""


def _anywhere(numbers: UniformNumbers, ranges: Randomization) -> np.ndarray:
    """Hand poses [n, 6] all over the workspace, low ones more often than high ones."""
    reach = ranges.object_extent + 0.02
    u = numbers.take(4)
    pose = np.zeros((len(u), 6))
    pose[:, :2] = CENTER + (2 * u[:, :2] - 1) * reach
    pose[:, 2] = 0.02 + (ranges.hand_height[1] - 0.02) * u[:, 2]
    pose[:, 5] = (2 * u[:, 3] - 1) * (np.pi / 4)
    return pose
