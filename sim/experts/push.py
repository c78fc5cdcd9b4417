"""The expert of pushing: down behind the block, then along the line from its centre to the pad's.

The closed fingers are a pusher two centimetres wide. A block that slips off it sideways, or that
was pushed past the pad, is gone round again.
"""

from __future__ import annotations

import numpy as np

from sim.experts.controller import GAIN, hold
from sim.physics import Physics
from sim.robots.rotations import wrap_angle
from sim.scenes.tabletop import POSE_HIGH, POSE_LOW
from sim.task import TARGET
from sim.tasks.push import STANDOFF

BEHIND, PUSH = range(2)
PUSH_SPEED, BRAKING = 0.013, 0.25
"""Metres per control step, and share of the way left covered in one: a cylinder that is let go
faster topples."""
PUSH_HEIGHT, HOVER = 0.016, 0.08
NEAR_XY, NEAR_Z = 0.012, 0.012
SLIPPED = 0.016
"""How far (metres) the block's centre may be beside the pusher's line."""
NEAR_ENOUGH = 0.015
"""The push ends with the block's centre this close (metres) to the pad's."""
WITHIN = 0.002
"""Metres that a goal stays inside the workspace, so that the command can arrive."""
STEERING = 1.0
"""Share of the sideways distance to the block that the pusher makes up per control step."""


class Pushing:
    """Phases: 0 behind (go there, above everything, and down), 1 push."""

    phases: tuple[str, ...] = ("behind", "push")

    def advance(
        self, physics: Physics, ids: np.ndarray, phase: np.ndarray, timer: np.ndarray
    ) -> np.ndarray:
        """Push from where the hand is down behind the block until the block is no longer before
        it."""
        ahead, beside, _ = self._line(physics, ids)
        hand = physics.hand_position(ids)
        ready = np.linalg.norm(self._behind(physics, ids) - hand[:, :2], axis=1) < NEAR_XY
        ready &= hand[:, 2] < PUSH_HEIGHT + NEAR_Z
        lost = (np.abs(beside) > SLIPPED) | (ahead < 0.01) | (ahead > STANDOFF + 0.03)
        new = phase.copy()
        new[(phase == BEHIND) & ready] = PUSH
        new[(phase == PUSH) & lost] = BEHIND
        return new

    def goal(self, physics: Physics, ids: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """Down a funnel behind the block, or onward along the line."""
        goal, command = hold(physics, ids), physics.commanded[ids]
        _, beside, direction = self._line(physics, ids)
        quarter = np.pi / 2  # the closed fingers are about as thick as they are wide
        goal[:, 3] += wrap_angle(np.arctan2(direction[:, 1], direction[:, 0]) - goal[:, 3], quarter)

        behind = phase == BEHIND
        there = self._behind(physics, ids)
        distance = np.linalg.norm(there - command[:, :2], axis=1)
        height = np.clip(4.0 * (distance - NEAR_XY / 2), 0, HOVER)
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
        """How far the block is ahead of the hand [n] and to the left of it [n], along the way to
        the pad [n, 2]."""
        block = physics.block_position(ids, TARGET)[:, :2]
        way = physics.pad_position(ids, TARGET)[:, :2] - block
        direction = way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-6)
        offset = block - physics.hand_position(ids)[:, :2]
        ahead = (offset * direction).sum(axis=1)
        return ahead, offset[:, 1] * direction[:, 0] - offset[:, 0] * direction[:, 1], direction

    def _behind(self, physics: Physics, ids: np.ndarray) -> np.ndarray:
        """Where [n, 2] to set the hand down, inside the workspace."""
        _, _, direction = self._line(physics, ids)
        there = physics.block_position(ids, TARGET)[:, :2] - STANDOFF * direction
        return np.clip(there, POSE_LOW[:2] + WITHIN, POSE_HIGH[:2] - WITHIN)
