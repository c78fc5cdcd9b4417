"""Our tasks behind gymnasium's two interfaces: one environment, and a vector of them.

An observation is a dictionary: a uint8 image [h, w, 3] per camera, "proprio" float32 [7], and the
"instruction" as text. One step is one control step.
"""

from __future__ import annotations

import string
from itertools import product
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from gymnasium.vector.utils import batch_space

import sim
from sim.task import SimObservation
from sim.tasks import task_names
from sim.vector import VectorEnvironment
from sim.workspace import MAX_OPENING, POSE_HIGH, POSE_LOW

MAX_INSTRUCTION = 128
OPENING_SLACK = 0.02
"""Largest distance (metres) by which a measured opening passes the fingers' soft stops."""
LARGEST_SEED = 2**31 - 1


def register_environments() -> None:
    """Register every task with every robot, as "PickPlacePanda-v0", "ReachGantry-v0" and so on."""
    for task, robot in product(task_names(), sim.ROBOTS):
        name = f"{task.title().replace('_', '')}{robot.capitalize()}-v0"
        if name not in gymnasium.registry:
            kwargs = {"task": task, "robot": robot}
            gymnasium.register(name, entry_point="sim.environment:Environment", kwargs=kwargs)


def observation_space(env: VectorEnvironment) -> spaces.Dict:
    """The observation space of one environment."""
    shape = (env.image_size, env.image_size, 3)
    parts: dict[str, spaces.Space[Any]] = {
        c: spaces.Box(0, 255, shape, np.uint8) for c in env.cameras
    }
    low = [*POSE_LOW, -OPENING_SLACK]
    high = [*POSE_HIGH, MAX_OPENING + OPENING_SLACK]
    parts["proprio"] = spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
    parts["instruction"] = spaces.Text(MAX_INSTRUCTION, charset=string.ascii_lowercase + " ")
    return spaces.Dict(parts)


def action_space(env: VectorEnvironment) -> spaces.Box:
    """The action space of one control step, within the limits of the action spec."""
    spec = env.action_spec
    return spaces.Box(np.array(spec.low, np.float32), np.array(spec.high, np.float32))


class Environment(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One environment with the options of `sim.make_vector`; `reset(seed=...)` chooses the
    start."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - gymnasium's own convention

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r} is unknown; choose 'rgb_array' or None")
        self.render_mode = render_mode
        self._env = sim.make_vector(num_envs=1, **options)
        self.observation_space = observation_space(self._env)
        self.action_space = action_space(self._env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the start of `seed`, or a random one."""
        super().reset(seed=seed)
        start = int(self.np_random.integers(LARGEST_SEED)) if seed is None else seed
        return _row(self._env.reset([start])), {"seed": start}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One control step."""
        result = self._env.step(np.asarray(action)[None, None])
        info: dict[str, Any] = {"success": bool(result.success[0])}
        info |= {
            name: float(values[0]) for name, values in result.metrics.items() if name != "success"
        }
        ended = bool(result.terminated[0]), bool(result.truncated[0])
        return _row(result.observation), float(result.reward[0]), *ended, info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The first camera's image with `render_mode="rgb_array"`, else None."""
        if self.render_mode is None or not self._env.cameras:
            return None
        return self._env.observe().images[self._env.cameras[0]][0]

    def close(self) -> None:
        """Free the renderer."""
        self._env.close()


class VectorAdapter(GymnasiumVectorEnv[dict[str, Any], np.ndarray, np.ndarray]):
    """A `VectorEnvironment` for gymnasium; the step after an episode's end resets its
    environment."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - gymnasium's own convention

    def __init__(self, env: VectorEnvironment) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.single_observation_space = observation_space(env)
        self.single_action_space = action_space(env)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._ended = np.zeros(self.num_envs, dtype=bool)

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reset all environments: from seed, seed + 1, ..., a list of seeds, or random ones."""
        if isinstance(seed, list):
            seeds = seed
        else:
            super().reset(seed=seed)
            seeds = (
                self._new_seeds(self.num_envs)
                if seed is None
                else [seed + i for i in range(self.num_envs)]
            )
        self._ended[:] = False
        return _batch(self.env.reset(seeds)), {"seed": np.array(seeds)}

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One control step; environments that ended at the last one are reset, with reward 0."""
        fresh = np.flatnonzero(self._ended)
        running = np.flatnonzero(~self._ended)
        if len(fresh):
            self.env.reset(self._new_seeds(len(fresh)), fresh, render=False)
        reward = np.zeros(self.num_envs)
        success = np.zeros(self.num_envs, dtype=bool)
        terminated = success.copy()
        truncated = success.copy()
        if len(running):
            result = self.env.step(np.asarray(actions)[running, None], running, render=False)
            reward[running] = result.reward
            success[running] = result.success
            terminated[running] = result.terminated
            truncated[running] = result.truncated
        self._ended = terminated | truncated
        return _batch(self.env.observe()), reward, terminated, truncated, {"success": success}

    def close_extras(self, **kwargs: Any) -> None:
        """Free the renderer."""
        self.env.close()

    def _new_seeds(self, count: int) -> list[int]:
        return self.np_random.integers(LARGEST_SEED, size=count).tolist()


def _row(observation: SimObservation) -> dict[str, Any]:
    images = {camera: pictures[0] for camera, pictures in observation.images.items()}
    return {**images, "proprio": observation.proprio[0], "instruction": observation.instruction[0]}


def _batch(observation: SimObservation) -> dict[str, Any]:
    return {
        **observation.images,
        "proprio": observation.proprio,
        "instruction": tuple(observation.instruction),
    }
