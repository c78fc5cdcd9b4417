"""Push: "push the red cube to the blue square", with closed fingers, along the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sim import rewards
from sim.appearance import Looks
from sim.controllers.controller import GAIN, Controller, hold
from sim.diagnosis import EpisodeTrace, Reason, not_pushed
from sim.initial_states import start
from sim.instructions import InstructionTemplate
from sim.randomize import Randomization, Scenes, UniformNumbers
from sim.robots.rotations import wrap_angle
from sim.task import TARGET
from sim.workspace import POSE_HIGH, POSE_LOW

if TYPE_CHECKING:
    from sim.physics import Physics

PUSHED_DISTANCE = 0.03
"""Success: block centre to pad centre along the table, metres."""
STILL_SPEED = 0.05
"""Success: the block's speed, m/s."""
STANDOFF = 0.065
"""Metres behind the block's centre where a hand can be set down to push."""
FREE_WIDTH = 0.075
"""A path is free when no other block's centre is nearer to it, metres."""


class Push:
    """The target block must lie on the target pad, still, and out of the fingers."""

    name = "push"
    template = InstructionTemplate(
        "push the {first} to the {second}",
        ("block", "pad"),
        ("shove the {first} onto the {second}", "slide the {first} onto the {second}"),
    )
    reward_names: tuple[str, ...] = ("reach", "push", "success")

    def __init__(self, ranges: Randomization) -> None:
        self.ranges = ranges

    def initialise(
        self, physics: Physics, rngs: list[np.random.Generator], ids: np.ndarray
    ) -> None:
        """All objects on the table, the hand open above it, no block on the path."""
        start(physics, rngs, ids, self.ranges, with_free_path)

    def block_to_pad(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Vector [n, 2] along the table from the target block to the target pad, metres."""
        return (physics.pad_position(ids, TARGET) - physics.block_position(ids, TARGET))[:, :2]

    def success(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Block within 3 cm of the pad's centre, on the table, slower than 5 cm/s, not held."""
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

    def controller(self) -> Controller:
        """Down behind the block, then along the line to the pad."""
        return PushController()

    def diagnose(self, trace: EpisodeTrace) -> Reason:
        """The block, or another one, was pushed elsewhere, or none was."""
        return not_pushed(trace)


# -- initial states with a free path ------------------------------------------------------------


def with_free_path(scenes: Scenes, numbers: UniformNumbers) -> Scenes:
    """The scenes with a random pair of a block and a pad with a free path between them named.

    Where no path is free, the widest is taken. The appearances change places too, so that the
    named objects stay the first ones.
    """
    n = len(scenes.block_xy)
    num_blocks = scenes.block_xy.shape[1]
    num_pads = scenes.pad_xy.shape[1]
    width = path_width(scenes.block_xy, scenes.pad_xy).reshape(n, -1)
    chance = numbers.take(num_blocks * num_pads)
    # A free pair scores above 1 and the draw decides; without one the width does.
    score = np.where(width > FREE_WIDTH, 1.0 + chance, np.minimum(width, FREE_WIDTH))
    pair = np.argmax(score, axis=1)
    block = _swap_with_first(num_blocks, pair // num_pads)
    pad = _swap_with_first(num_pads, pair % num_pads)
    looks = scenes.looks
    return replace(
        scenes,
        looks=Looks(
            block_color=np.take_along_axis(looks.block_color, block, 1),
            block_shape=np.take_along_axis(looks.block_shape, block, 1),
            pad_color=np.take_along_axis(looks.pad_color, pad, 1),
            pad_shape=np.take_along_axis(looks.pad_shape, pad, 1),
        ),
        block_xy=np.take_along_axis(scenes.block_xy, block[:, :, None], 1),
        block_yaw=np.take_along_axis(scenes.block_yaw, block, 1),
        pad_xy=np.take_along_axis(scenes.pad_xy, pad[:, :, None], 1),
        pad_yaw=np.take_along_axis(scenes.pad_yaw, pad, 1),
    )


def path_width(block_xy: np.ndarray, pad_xy: np.ndarray) -> np.ndarray:
    """Distance [n, blocks, pads] from each path to the nearest other block's centre, metres.

    A path begins `STANDOFF` behind its block and ends at its pad.
    """
    along = pad_xy[:, None] - block_xy[:, :, None]
    length = np.linalg.norm(along, axis=3, keepdims=True)
    begin = block_xy[:, :, None] - along * (STANDOFF / length)
    path = pad_xy[:, None] - begin
    others = block_xy[:, None, None] - begin[:, :, :, None]  # [n, blocks, pads, others, 2]
    share = (others * path[:, :, :, None]).sum(-1) / (path * path).sum(-1)[..., None]
    nearest = others - np.clip(share, 0.0, 1.0)[..., None] * path[:, :, :, None]
    distance = np.linalg.norm(nearest, axis=-1)
    same = np.eye(block_xy.shape[1], dtype=bool)[None, :, None]
    return np.where(same, np.inf, distance).min(axis=-1)


def _swap_with_first(count: int, index: np.ndarray) -> np.ndarray:
    """Orders [n, count] in which `index` [n] and 0 have changed places."""
    order = np.tile(np.arange(count), (len(index), 1))
    order[np.arange(len(index)), index] = 0
    order[:, 0] = index
    return order


# -- the controller -----------------------------------------------------------------------------

BEHIND, PUSH = range(2)
PUSH_SPEED = 0.013
"""Metres per control step: a cylinder that is let go faster topples."""
BRAKING = 0.25
"""Share of the remaining distance covered in a control step."""
PUSH_HEIGHT = 0.016
HOVER_HEIGHT = 0.08
NEAR_XY = 0.012
NEAR_Z = 0.012
SLIP_DISTANCE = 0.016
"""Metres of the block's centre from the pusher's line, above which the block has slipped off."""
LOST_BEHIND = 0.01
LOST_AHEAD = STANDOFF + 0.03
"""Nearest and farthest block centre ahead of the hand (metres) during a push."""
NEAR_ENOUGH = 0.015
"""The push ends with the block's centre this close (metres) to the pad's."""
EDGE_MARGIN = 0.002
"""Metres that a goal stays inside the workspace, so that the command can arrive."""
STEERING = 1.0
"""Share of the sideways distance to the block that the pusher makes up per control step."""


class PushController:
    """Phases: 0 behind (go there, above everything, and down), 1 push.

    The closed fingers are a pusher two centimetres wide. A block that slips off it sideways, or
    that was pushed past the pad, is approached again from behind.
    """

    phases: tuple[str, ...] = ("behind", "push")

    def advance(
        self, physics: Physics, ids: np.ndarray, phase: np.ndarray, timer: np.ndarray
    ) -> np.ndarray:
        """Push from behind the block until the block is no longer ahead of the hand."""
        ahead, beside, _ = self._line(physics, ids)
        hand = physics.hand_position(ids)
        ready = np.linalg.norm(self._behind(physics, ids) - hand[:, :2], axis=1) < NEAR_XY
        ready &= hand[:, 2] < PUSH_HEIGHT + NEAR_Z
        lost = (np.abs(beside) > SLIP_DISTANCE) | (ahead < LOST_BEHIND) | (ahead > LOST_AHEAD)
        new = phase.copy()
        new[(phase == BEHIND) & ready] = PUSH
        new[(phase == PUSH) & lost] = BEHIND
        return new

    def goal(self, physics: Physics, ids: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """Down a funnel behind the block, or onward along the line."""
        goal = hold(physics, ids)
        command = physics.commanded[ids]
        _, beside, direction = self._line(physics, ids)
        quarter = np.pi / 2  # the closed fingers are about as thick as they are wide
        goal[:, 3] += wrap_angle(np.arctan2(direction[:, 1], direction[:, 0]) - goal[:, 3], quarter)

        behind = phase == BEHIND
        there = self._behind(physics, ids)
        distance = np.linalg.norm(there - command[:, :2], axis=1)
        height = np.clip(4.0 * (distance - NEAR_XY / 2), 0, HOVER_HEIGHT)
        goal[behind, :2] = there[behind]
        goal[behind, 2] = (PUSH_HEIGHT + height)[behind]

        push = phase == PUSH
        way = physics.pad_position(ids, TARGET) - physics.block_position(ids, TARGET)
        left = np.linalg.norm(way[:, :2], axis=1)
        forward = np.clip(BRAKING * (left - NEAR_ENOUGH), 0, PUSH_SPEED)
        across = np.stack([-direction[:, 1], direction[:, 0]], axis=1)
        step = direction * forward[:, None] + across * (STEERING * beside)[:, None]
        goal[push, :2] = (command[:, :2] + step / GAIN)[push]
        goal[push, 2] = PUSH_HEIGHT
        return goal

    def closed(self, phase: np.ndarray) -> np.ndarray:
        """Always."""
        return np.ones(len(phase), dtype=bool)

    def _line(self, physics: Physics, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The block's distance ahead of the hand [n], to its left [n], and the direction [n, 2].

        The direction is that from the block to the pad.
        """
        block = physics.block_position(ids, TARGET)[:, :2]
        way = physics.pad_position(ids, TARGET)[:, :2] - block
        direction = way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-6)
        offset = block - physics.hand_position(ids)[:, :2]
        ahead = (offset * direction).sum(axis=1)
        beside = offset[:, 1] * direction[:, 0] - offset[:, 0] * direction[:, 1]
        return ahead, beside, direction

    def _behind(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Where [n, 2] to set the hand down, inside the workspace."""
        _, _, direction = self._line(physics, ids)
        there = physics.block_position(ids, TARGET)[:, :2] - STANDOFF * direction
        return np.clip(there, POSE_LOW[:2] + EDGE_MARGIN, POSE_HIGH[:2] - EDGE_MARGIN)
