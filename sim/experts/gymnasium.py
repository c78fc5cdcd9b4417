"""Scripted experts of gymnasium environments: Fetch, and Meta-World's own policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sim.gymnasium_vector import GymnasiumVector

Act = Callable[[Any], np.ndarray]
"""A controller: from one observation to an action [A]."""

FETCH_STEP = 0.05
"""Metres that an action of 1 moves along an axis."""
FETCH_GAIN = 0.4
"""Share of the remaining distance covered per control step."""


class GymnasiumExpert:
    """The expert of `env` by the controller `act`.

    `noise` is the standard deviation of noise, as a share of the actions' range. `perturbed` marks
    no step: this expert has no disturbances.
    """

    def __init__(self, env: GymnasiumVector, act: Act, seed: int = 0, noise: float = 0.0) -> None:
        self._env = env
        self._act = act
        self._noise = noise
        self._rng = np.random.default_rng(seed)
        self.perturbed = np.zeros(env.num_envs, dtype=bool)

    def reset(self, ids: np.ndarray | None = None) -> None:
        """No effect: the observation alone decides the action."""

    def act(self, ids: np.ndarray | None = None) -> np.ndarray:
        """The next control step's action [n, A] for the environments `ids` (None: all)."""
        ids = np.arange(self._env.num_envs) if ids is None else np.asarray(ids, dtype=np.int64)
        low = np.array(self._env.action_spec.low)
        high = np.array(self._env.action_spec.high)
        actions = np.stack([self._act(self._env.seen[i]) for i in ids])
        if self._noise > 0:
            actions = actions + self._noise * (high - low) * self._rng.standard_normal(
                actions.shape
            )
        return np.clip(actions, low, high).astype(np.float32)


def build_act(id: str, make: Mapping[str, Any]) -> Act:
    """The controller of the environment `id`; raises a ValueError where there is none."""
    if id.startswith("FetchReach"):
        return fetch_reach
    if id.startswith("FetchPickAndPlace"):
        return fetch_pick_and_place
    if id.startswith("Meta-World"):
        from metaworld.policies import ENV_POLICY_MAP

        return ENV_POLICY_MAP[str(make.get("env_name"))]().get_action
    raise ValueError(f"sim.id ({id}) has no scripted expert: give demonstrations by data.path")


def fetch_reach(state: Mapping[str, np.ndarray]) -> np.ndarray:
    """Straight to the goal, with closed fingers."""
    return _fetch_action(state["desired_goal"] - state["observation"][:3], closed=True)


def fetch_pick_and_place(state: Mapping[str, np.ndarray]) -> np.ndarray:
    """Above the block, down, close, to the goal.

    The observation holds gripper, block, block from gripper, fingers, and velocities.
    """
    observation = state["observation"]
    gripper = observation[:3]
    offset = observation[6:9]
    opening = observation[9:11].sum()
    distance = np.linalg.norm(offset[:2])
    between = np.linalg.norm(offset) < 0.02
    if between and opening < 0.055:
        return _fetch_action(state["desired_goal"] - observation[3:6], closed=True)
    if between:
        return _fetch_action(offset, closed=True)
    hover = np.array([0.0, 0.0, 0.08 if distance > 0.015 else 0.0])
    return _fetch_action(observation[3:6] + hover - gripper, closed=False)


def _fetch_action(way: np.ndarray, closed: bool) -> np.ndarray:
    return np.append(np.clip(FETCH_GAIN * way / FETCH_STEP, -1.0, 1.0), -1.0 if closed else 1.0)
