"""A scripted expert for pick-and-place, over all environments at once, that recovers when it is disturbed.

Every phase is a proportional controller on the commanded pose, so its actions are a smooth function of what is seen.
Approach and descent are one motion down a funnel: the height to go to falls with the horizontal distance left; carrying
and lowering are the same funnel over the pad. Phases: 0 approach, 1 grasp, 2 lift, 3 carry, 4 release, 5 retract.
"""

from __future__ import annotations

import numpy as np

from sim.robots.rotations import wrap_angle
from sim.scenes.objects import BLOCK_HALF_HEIGHT
from sim.spec import CLOSE, DEFAULT_ACTION_SPEC, OPEN
from sim.tasks.pick_place import PLACED_DISTANCE, TARGET
from sim.vector import VectorEnvironment

APPROACH, GRASP, LIFT, CARRY, RELEASE, RETRACT = range(6)
PHASES = ("approach", "grasp", "lift", "carry", "release", "retract")

GAIN = 0.5
"""Share of the remaining distance covered per control step, before the speed limits."""
SPEED_XY, SPEED_Z, SPEED_YAW = 0.03, 0.03, 0.15
"""Metres, metres and radians per control step."""
HOVER, CARRY_HEIGHT, RETRACT_HEIGHT = 0.07, 0.075, 0.10
NEAR_XY, NEAR_Z, NEAR_YAW = 0.006, 0.006, 0.12
GRASP_STEPS, RELEASE_STEPS = 8, 3
GRASP_DEPTH = -0.002
"""The tcp aims this far (metres) relative to the block's centre."""


class Expert:
    """Acts in the environments of `env`; one instance keeps one phase and timer per environment.

    Args:
        env: the environments.
        seed: of the disturbances.
        noise: standard deviation of noise on every action, as a share of the action's limit.
        burst_probability: chance per control step that a disturbance begins: a few steps of random motion, at times
            with the fingers moving the wrong way. `perturbed` marks those steps: leave them out of a loss.
        burst_steps: shortest and longest disturbance, control steps.
        burst_speed: largest motion of a disturbance, metres per control step along each axis.
    """

    def __init__(
        self,
        env: VectorEnvironment,
        seed: int = 0,
        noise: float = 0.0,
        burst_probability: float = 0.0,
        burst_steps: tuple[int, int] = (2, 5),
        burst_speed: float = 0.03,
    ) -> None:
        self._physics = env.physics
        n = env.num_envs
        self._rng = np.random.default_rng(seed)
        self._noise, self._burst_probability = noise, burst_probability
        self._burst_steps, self._burst_speed = burst_steps, burst_speed
        self.phase = np.zeros(n, dtype=np.int64)
        self.perturbed = np.zeros(n, dtype=bool)
        self._timer = np.zeros(n, dtype=np.int64)
        self._burst_left = np.zeros(n, dtype=np.int64)
        self._burst = np.zeros((n, 7))

    def reset(self, ids: np.ndarray | None = None) -> None:
        """Forget the phases of the environments `ids` (None: all)."""
        chosen = slice(None) if ids is None else ids
        self.phase[chosen] = APPROACH
        self.perturbed[chosen] = False
        self._timer[chosen] = 0
        self._burst_left[chosen] = 0

    def act(self, ids: np.ndarray | None = None) -> np.ndarray:
        """The next control step's action [n, 7] for the environments `ids` (None: all)."""
        ids = np.arange(len(self.phase)) if ids is None else np.asarray(ids, dtype=np.int64)
        self._advance(ids)
        goal = self._goal(ids)
        closed = (self.phase[ids] >= GRASP) & (self.phase[ids] <= CARRY)
        action = np.concatenate([self._toward(ids, goal), np.where(closed, CLOSE, OPEN)[:, None]], axis=1)
        return self._disturb(ids, action).astype(np.float32)

    def _advance(self, ids: np.ndarray) -> None:
        """Move every environment to the phase that what it sees calls for."""
        physics, phase = self._physics, self.phase[ids]
        held = physics.grasped(ids, TARGET)
        offset = physics.hand_to_block(ids, TARGET)
        block, pad = physics.block_position(ids, TARGET), physics.pad_position(ids, TARGET)
        to_pad = np.linalg.norm((pad - block)[:, :2], axis=1)
        turn = physics.aligned_yaw(ids, TARGET) - physics.commanded[ids, 5]
        around = (np.linalg.norm(offset[:, :2], axis=1) < NEAR_XY + 0.003) & (np.abs(turn) < NEAR_YAW)
        around &= np.abs(offset[:, 2] - GRASP_DEPTH) < NEAR_Z
        lifted = block[:, 2] - BLOCK_HALF_HEIGHT
        low = lifted < NEAR_Z
        open_wide = physics.gripper_opening(ids) > 0.06
        timer = self._timer[ids] + 1

        new = phase.copy()
        new[held & (phase < LIFT)] = LIFT
        new[(phase == APPROACH) & around & ~held & open_wide] = GRASP
        new[(phase == GRASP) & ~held & (timer > GRASP_STEPS)] = APPROACH
        new[(phase == LIFT) & held & (lifted > 0.6 * CARRY_HEIGHT)] = CARRY
        new[(phase == LIFT) & held & (to_pad < NEAR_XY)] = CARRY
        new[(phase == CARRY) & held & low & (to_pad < NEAR_XY + 0.004)] = RELEASE
        new[((phase == LIFT) | (phase == CARRY)) & ~held & (timer > 2)] = APPROACH
        new[(phase == RELEASE) & open_wide & (timer > RELEASE_STEPS)] = RETRACT
        done = (to_pad < PLACED_DISTANCE - 0.004) & low
        new[(phase >= RELEASE) & ~done] = APPROACH
        new[(phase == APPROACH) & done & ~held] = RETRACT
        self._timer[ids] = np.where(new == phase, timer, 0)
        self.phase[ids] = new

    def _goal(self, ids: np.ndarray) -> np.ndarray:
        """Where the commanded x y z yaw [n, 4] should go."""
        physics, phase, command = self._physics, self.phase[ids], self._physics.commanded[ids]
        block, pad = physics.block_position(ids, TARGET), physics.pad_position(ids, TARGET)
        hand = physics.hand_position(ids)
        # The servo follows with a lag: aim so that the measured hand, not the command, arrives.
        goal = np.stack([command[:, 0], command[:, 1], command[:, 2], command[:, 5]], axis=1)

        approach = phase == APPROACH
        distance = np.linalg.norm((block - command[:, :3])[:, :2], axis=1)
        turn = np.abs(physics.aligned_yaw(ids, TARGET) - command[:, 5])
        height = np.clip(3.0 * np.maximum(distance - NEAR_XY, 0) + 0.3 * np.maximum(turn - NEAR_YAW, 0), 0, HOVER)
        height = np.maximum(height, np.where(physics.gripper_opening(ids) < 0.06, HOVER, 0.0) * (distance < 0.05))
        goal[approach, :2] = block[approach, :2]
        goal[approach, 2] = (block[:, 2] + GRASP_DEPTH + height)[approach]
        goal[approach, 3] = physics.aligned_yaw(ids, TARGET)[approach]

        lift = phase == LIFT
        goal[lift, 2] = BLOCK_HALF_HEIGHT + CARRY_HEIGHT + 0.02

        carry = phase == CARRY
        grip = block - hand
        distance = np.linalg.norm((pad - block)[:, :2], axis=1)
        height = np.clip(2.5 * (distance - NEAR_XY), 0, CARRY_HEIGHT)
        goal[carry, :2] = (pad - grip)[carry, :2]
        goal[carry, 2] = (BLOCK_HALF_HEIGHT + 0.002 - grip[:, 2] + height)[carry]

        retract = phase == RETRACT
        goal[retract, 2] = BLOCK_HALF_HEIGHT + RETRACT_HEIGHT
        return goal

    def _toward(self, ids: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Proportional motion [n, 6] of the command towards `goal` [n, 4], with limited speed."""
        command = self._physics.commanded[ids]
        delta = GAIN * (goal[:, :3] - command[:, :3])
        speed = np.linalg.norm(delta[:, :2], axis=1, keepdims=True)
        delta[:, :2] *= np.minimum(1.0, SPEED_XY / np.maximum(speed, 1e-9))
        delta[:, 2] = np.clip(delta[:, 2], -SPEED_Z, SPEED_Z)
        level = np.clip(-GAIN * command[:, 3:5], -SPEED_YAW, SPEED_YAW)
        turn = np.clip(GAIN * wrap_angle(goal[:, 3:4] - command[:, 5:6]), -SPEED_YAW, SPEED_YAW)
        return np.concatenate([delta, level, turn], axis=1)

    def _disturb(self, ids: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Add noise and bursts; marks `perturbed` where a burst replaced the expert's action."""
        high = np.array(DEFAULT_ACTION_SPEC.high)
        if self._noise > 0:
            action[:, :6] += self._noise * high[:6] * self._rng.standard_normal((len(ids), 6))
        self.perturbed[ids] = False
        if self._burst_probability <= 0:
            return action
        starts = (self._rng.random(len(ids)) < self._burst_probability) & (self._burst_left[ids] == 0)
        low, longest = self._burst_steps
        lengths = self._rng.integers(low, longest + 1, len(ids))
        motion = np.zeros((len(ids), 7))
        motion[:, :3] = self._rng.uniform(-self._burst_speed, self._burst_speed, (len(ids), 3))
        motion[:, 5] = self._rng.uniform(-0.1, 0.1, len(ids))
        motion[:, 6] = np.where(self._rng.random(len(ids)) < 0.3, -action[:, 6], action[:, 6])
        self._burst_left[ids[starts]] = lengths[starts]
        self._burst[ids[starts]] = motion[starts]
        shaken = self._burst_left[ids] > 0
        self._burst_left[ids[shaken]] -= 1
        self.perturbed[ids] = shaken
        return np.where(shaken[:, None], self._burst[ids], action)
