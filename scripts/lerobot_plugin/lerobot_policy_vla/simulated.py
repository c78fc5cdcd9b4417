"""Our simulated tasks as LeRobot knows environments: `--env.type=vla --env.task=pick_place`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from sim.environment import Environment

HELD_OUT, NUM_HELD_OUT = (
    2_000_000,
    1_000_000,
)  # where the starts begin that no run of ours trains on, how many


@EnvConfig.register_subclass("vla")
@dataclass
class VlaEnv(EnvConfig):
    """A task, robot and cameras of `sim.make_vector`. LeRobot's seed s stands for the start
    `first_start + s`."""

    task: str | None = "pick_place"
    fps: int = 20
    robot: str = "panda"
    cameras: list[str] = field(default_factory=lambda: ["front", "wrist"])
    image_size: int = 64
    max_steps: int = 80
    num_distractors: int = 1
    perturbation: str = "none"
    first_start: int = HELD_OUT

    def __post_init__(self) -> None:
        shape = (self.image_size, self.image_size, 3)
        parts = {"action": (FeatureType.ACTION, (7,), "action")}
        parts["agent_pos"] = (FeatureType.STATE, (7,), "observation.state")
        parts |= {
            f"pixels/{c}": (FeatureType.VISUAL, shape, f"observation.images.{c}")
            for c in self.cameras
        }
        self.features = {name: PolicyFeature(kind, size) for name, (kind, size, _) in parts.items()}
        self.features_map = {name: key for name, (_, _, key) in parts.items()}

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """The options of `sim.make_vector`."""
        names = (
            "task",
            "robot",
            "cameras",
            "image_size",
            "max_steps",
            "num_distractors",
            "perturbation",
        )
        return {name: getattr(self, name) for name in names} | {"num_threads": 1}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        makers = [partial(ForLeRobot, self.first_start, self.gym_kwargs)] * n_envs
        same = gymnasium.vector.AutoresetMode.SAME_STEP
        if use_async_envs and n_envs > 1:
            return {
                self.type: {
                    0: gymnasium.vector.AsyncVectorEnv(
                        makers, context="forkserver", autoreset_mode=same
                    )
                }
            }
        return {self.type: {0: gymnasium.vector.SyncVectorEnv(makers, autoreset_mode=same)}}


class ForLeRobot(gymnasium.Wrapper):
    """One environment by LeRobot's names: `pixels`, `agent_pos`, `is_success`,
    `task_description`."""

    def __init__(self, first_start: int, options: dict[str, Any]) -> None:
        super().__init__(Environment(render_mode="rgb_array", **options))
        self.task, self.task_description = options["task"], ""
        self.first_start, self._max_episode_steps = first_start, options["max_steps"]
        seen = self.env.observation_space
        pixels = gymnasium.spaces.Dict({camera: seen[camera] for camera in options["cameras"]})
        self.observation_space = gymnasium.spaces.Dict(
            {"pixels": pixels, "agent_pos": seen["proprio"]}
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        number = int(np.random.default_rng().integers(NUM_HELD_OUT)) if seed is None else seed
        seen, info = self.env.reset(seed=self.first_start + number)
        return self.shown(seen), {**info, "is_success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.env.step(action)
        return (
            self.shown(seen),
            reward,
            terminated,
            truncated,
            {**info, "is_success": info["success"]},
        )

    def shown(self, seen: dict[str, Any]) -> dict[str, Any]:
        self.task_description = seen["instruction"]
        pixels = {camera: seen[camera] for camera in self.observation_space["pixels"]}
        return {"pixels": pixels, "agent_pos": seen["proprio"]}
