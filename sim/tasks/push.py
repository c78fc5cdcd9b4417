"""Push: "push the red cube to the blue square", with closed fingers, along the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sim import rewards
from sim.looks import Looks
from sim.physics import Physics
from sim.randomize import Randomization, Scenes, UniformNumbers
from sim.starts import start
from sim.task import TARGET
from sim.wording import WORDINGS

PUSHED_DISTANCE = 0.03
"""Success: block centre to pad centre on the table, metres."""
STILL_SPEED = 0.05
STANDOFF = 0.065
"""Metres behind the block's centre where a hand can be set down to push."""
FREE_WIDTH = 0.075
"""A way is free when no other block's centre is nearer to it, metres."""


class Push:
    """The target block must lie on the target pad, still, and out of the fingers."""

    name = "push"
    wording = WORDINGS["push"]
    reward_names: tuple[str, ...] = ("reach", "push", "success")

    def __init__(self, ranges: Randomization) -> None:
        self.ranges = ranges

    def initialise(
        self, physics: Physics, rngs: list[np.random.Generator], ids: np.ndarray
    ) -> None:
        """All objects on the table, the hand open above it, no block in the way."""
        start(physics, rngs, ids, self.ranges, with_free_way)

    def block_to_pad(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Vector [n, 2] along the table from the target block to the target pad, metres."""
        return (physics.pad_position(ids, TARGET) - physics.block_position(ids, TARGET))[:, :2]

    def success(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Block within 3 cm of the pad's centre, resting on the table, slower than 5 cm/s, not
        held."""
        there = np.linalg.norm(self.block_to_pad(physics, ids), axis=1) < PUSHED_DISTANCE
        still = physics.block_speed(ids, TARGET) < STILL_SPEED
        return there & still & physics.resting(ids, TARGET) & ~physics.grasped(ids, TARGET)

    def reward_terms(
        self, physics: Physics, ids: np.ndarray, best: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """reach, push, success; see `sim.rewards`."""
        return {
            "reach": rewards.reach(physics.hand_to_block(ids, TARGET)),
            "push": rewards.push(self.block_to_pad(physics, ids)),
            "success": rewards.success(self.success(physics, ids)),
        }


def with_free_way(scenes: Scenes, numbers: UniformNumbers) -> Scenes:
    """Make a random one of the pairs of a block and a pad between which the way is free the pair
    that is named.

    Where no way is free, the freest is taken. The looks change places, so that the named ones stay
    first.
    """
    n, num_blocks, num_pads = len(scenes.block_xy), scenes.block_xy.shape[1], scenes.pad_xy.shape[1]
    room = way_width(scenes.block_xy, scenes.pad_xy).reshape(n, -1)
    chance = numbers.take(num_blocks * num_pads)
    pair = np.argmax(
        np.where(room > FREE_WIDTH, 1.0 + chance, np.minimum(room, FREE_WIDTH)), axis=1
    )
    block, pad = _first(num_blocks, pair // num_pads), _first(num_pads, pair % num_pads)
    moved = {
        name: np.take_along_axis(getattr(scenes.looks, name), pad if "pad" in name else block, 1)
        for name in LOOKS
    }
    return replace(
        scenes,
        looks=Looks(**moved),
        block_xy=np.take_along_axis(scenes.block_xy, block[:, :, None], 1),
        block_yaw=np.take_along_axis(scenes.block_yaw, block, 1),
        pad_xy=np.take_along_axis(scenes.pad_xy, pad[:, :, None], 1),
        pad_yaw=np.take_along_axis(scenes.pad_yaw, pad, 1),
    )


LOOKS = ("block_color", "block_shape", "pad_color", "pad_shape")


def way_width(block_xy: np.ndarray, pad_xy: np.ndarray) -> np.ndarray:
    """Distance [n, blocks, pads] of the nearest other block to the way from behind each block to
    each pad, metres."""
    along = pad_xy[:, None] - block_xy[:, :, None]
    length = np.linalg.norm(along, axis=3, keepdims=True)
    begin = block_xy[:, :, None] - along * (STANDOFF / length)
    way = pad_xy[:, None] - begin
    others = block_xy[:, None, None] - begin[:, :, :, None]  # [n, blocks, pads, others, 2]
    share = (others * way[:, :, :, None]).sum(-1) / (way * way).sum(-1)[..., None]
    nearest = others - np.clip(share, 0.0, 1.0)[..., None] * way[:, :, :, None]
    distance = np.linalg.norm(nearest, axis=-1)
    same = np.eye(block_xy.shape[1], dtype=bool)[None, :, None]
    return np.where(same, np.inf, distance).min(axis=-1)


def _first(count: int, chosen: np.ndarray) -> np.ndarray:
    """Orders [n, count] in which `chosen` [n] and 0 have changed places."""
    order = np.tile(np.arange(count), (len(chosen), 1))
    order[np.arange(len(chosen)), chosen] = 0
    order[:, 0] = chosen
    return order
