"""Any gymnasium environment behind the interface of `VectorEnvironment`.

One process holds `num_envs` of them and steps any subset. Settings supply what gymnasium leaves
open: the instruction, the entry of `info` that means success, and the proprioception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from PIL import Image

from sim.spec import ActionSpec
from sim.task import SimObservation, StepResult

DEFAULT_HZ = 20.0
"""Control rate of an environment that names none in its metadata."""
PROPRIO_LIMIT = 1e6
"""Largest magnitude of a number of the proprioception."""


@dataclass(frozen=True)
class GymnasiumTask:
    """The parts of a task that a gymnasium environment leaves open.

    Attributes:
        name: its name in results.
        instruction: the sentence that a policy reads.
        success: entries of `info` that mean success; the first one present counts.
        success_return: return of a successful episode where `info` has no such entry; None: no
            episode succeeds.
        proprio: entries of a dictionary observation used as proprioception; empty: all vectors.
        proprio_size: number of their values used, from the first; None: all.
    """

    name: str
    instruction: str
    success: tuple[str, ...]
    success_return: float | None
    proprio: tuple[str, ...]
    proprio_size: int | None


class GymnasiumVector:
    """N gymnasium environments with the methods of `sim.vector.VectorEnvironment`.

    Success ends an episode. An environment that has ended ignores steps until it is reset.

    Args:
        make: makes one environment, with render_mode="rgb_array" where there are cameras.
        task: the instruction, success and proprioception.
        num_envs: environments N.
        cameras: the name of the one picture of `render()`; empty for none.
        image_size: height and width of the pictures, pixels.
        max_steps: control steps after which an episode is truncated, beside the environment's own
            limit.
        reward: weights of "environment" (its own reward) and "success" (1 when it succeeds).
        render_every_step: also render after every control step, as `StepResult.frames`.
    """

    reward_names = ("environment", "success")

    def __init__(
        self,
        *,
        make: Callable[[], gymnasium.Env[Any, Any]],
        task: GymnasiumTask,
        num_envs: int,
        cameras: tuple[str, ...],
        image_size: int,
        max_steps: int,
        reward: Mapping[str, float],
        render_every_step: bool,
    ) -> None:
        if len(cameras) > 1:
            raise ValueError(
                f"sim.cameras ({list(cameras)}): a gymnasium environment draws one picture; name "
                "one camera"
            )
        self.envs = [make() for _ in range(num_envs)]
        self.task = task
        self.num_envs = num_envs
        self.cameras = cameras
        self.image_size = image_size
        self.max_steps = max_steps
        self.reward_weights = dict(reward)
        self.render_every_step = render_every_step
        self.action_spec = action_spec(self.envs[0])
        self.seen: list[Any] = [None] * num_envs
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._return = np.zeros(num_envs)
        self._success = np.zeros(num_envs, dtype=bool)
        self._terminated = np.zeros(num_envs, dtype=bool)
        self._truncated = np.ones(num_envs, dtype=bool)
        self.proprio_size = len(self._proprio(self.envs[0].observation_space.sample()))
        self.proprio_names = tuple(f"proprio_{i}" for i in range(self.proprio_size))

    @property
    def instructions(self) -> list[str]:
        """The instruction of every environment."""
        return [self.task.instruction] * self.num_envs

    def task_name(self, seed: int) -> str:
        """The name of the task, whatever the seed."""
        return self.task.name

    def reset(
        self,
        seeds: Sequence[int] | np.ndarray,
        ids: np.ndarray | None = None,
        *,
        render: bool = True,
    ) -> SimObservation:
        """Start the environments `ids` (None: the first len(seeds)) from `seeds`."""
        ids = np.arange(len(seeds)) if ids is None else np.asarray(ids, dtype=np.int64)
        if len(seeds) != len(ids):
            raise ValueError(
                f"{len(seeds)} seeds for {len(ids)} environments; give one seed per environment"
            )
        for seed, i in zip(seeds, ids, strict=True):
            # Meta-World draws its start before it reads the seed that reset was given.
            self.envs[i].unwrapped.np_random = seeding.np_random(int(seed))[0]
            self.seen[i], _ = self.envs[i].reset(seed=int(seed))
        self._steps[ids] = 0
        self._return[ids] = 0.0
        self._success[ids] = False
        self._terminated[ids] = False
        self._truncated[ids] = False
        return self.observe(ids, render=render)

    def step(
        self, actions: np.ndarray, ids: np.ndarray | None = None, *, render: bool = True
    ) -> StepResult:
        """Execute a chunk of actions [n, H, A] in the environments `ids` (None: all).

        Images are rendered once, at the end of the chunk.

        Raises:
            ValueError: an action is NaN or infinite, the shape is wrong, or H does not divide
                `max_steps`.
        """
        ids = np.arange(self.num_envs) if ids is None else np.asarray(ids, dtype=np.int64)
        actions = self.action_spec.checked_chunks(actions, np.asarray(ids), self.max_steps)
        reward = np.zeros(len(ids))
        before = self._steps[ids]
        frames: dict[str, list[np.ndarray]] = {camera: [] for camera in self.cameras}
        for h in range(actions.shape[1]):
            for row, i in enumerate(ids):
                if not (self._terminated[i] or self._truncated[i]):
                    reward[row] += self._control_step(i, actions[row, h])
            if self.render_every_step and render:
                for camera, images in self._images(ids).items():
                    frames[camera].append(images)
        return StepResult(
            observation=self.observe(ids, render=render),
            reward=reward.astype(np.float32),
            terminated=self._terminated[ids],
            truncated=self._truncated[ids],
            success=self._success[ids],
            num_steps=self._steps[ids] - before,
            metrics={
                "success": self._success[ids].astype(np.float32),
                "return": self._return[ids].astype(np.float32),
            },
            frames={camera: np.stack(f, axis=1) for camera, f in frames.items() if f},
        )

    def observe(self, ids: np.ndarray | None = None, *, render: bool = True) -> SimObservation:
        """The observation of the environments `ids` now."""
        ids = np.arange(self.num_envs) if ids is None else np.asarray(ids, dtype=np.int64)
        proprio = np.stack([self._proprio(self.seen[i]) for i in ids])
        return SimObservation(
            self._images(ids) if render else {}, proprio, [self.task.instruction] * len(ids)
        )

    def close(self) -> None:
        """Close all environments."""
        for env in self.envs:
            env.close()

    def _control_step(self, i: int, action: np.ndarray) -> float:
        space = self.envs[i].action_space
        assert isinstance(space, spaces.Box)
        bounded = np.clip(action, space.low, space.high).astype(space.dtype).reshape(space.shape)
        self.seen[i], earned, terminated, truncated, info = self.envs[i].step(bounded)
        self._steps[i] += 1
        self._return[i] += float(earned)
        success = self._success_from(info)
        self._terminated[i] = terminated or bool(success)
        self._truncated[i] = not self._terminated[i] and (
            truncated or self._steps[i] >= self.max_steps
        )
        if success is None:
            ended = self._terminated[i] or self._truncated[i]
            success = bool(ended) and self._reaches_return(i)
        self._success[i] |= success
        return self.reward_weights.get("environment", 0.0) * float(earned) + (
            self.reward_weights.get("success", 0.0) * float(success)
        )

    def _success_from(self, info: Mapping[str, Any]) -> bool | None:
        """The first entry of `info` that means success; None where it has none."""
        entries = (bool(np.asarray(info[name]).any()) for name in self.task.success if name in info)
        return next(entries, None)

    def _reaches_return(self, i: int) -> bool:
        """Whether the return so far counts as a success."""
        needed = self.task.success_return
        return needed is not None and bool(self._return[i] >= needed)

    def _proprio(self, observation: Any) -> np.ndarray:
        if isinstance(observation, Mapping):
            names = self.task.proprio or [
                name for name in sorted(observation) if np.ndim(observation[name]) <= 1
            ]
            missing = [name for name in names if name not in observation]
            if missing:
                raise ValueError(
                    f"sim.proprio names {missing[0]!r}, but the observation has "
                    f"{', '.join(sorted(observation))}"
                )
            values = np.concatenate([np.ravel(observation[name]) for name in names])
        else:
            values = np.ravel(observation)
        return np.clip(values[: self.task.proprio_size], -PROPRIO_LIMIT, PROPRIO_LIMIT).astype(
            np.float32
        )

    def _images(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {
            camera: np.stack([resize_to_square(self._render(i), self.image_size) for i in ids])
            for camera in self.cameras
        }

    def _render(self, i: int) -> np.ndarray:
        picture = self.envs[i].render()
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            raise ValueError(
                f"{self.task.name} draws no picture with render_mode='rgb_array'; choose another "
                "environment"
            )
        return picture


def action_spec(env: gymnasium.Env[Any, Any]) -> ActionSpec:
    """The number and limits of an environment's actions; gymnasium names no units and frames.

    Raises a ValueError for actions that are no bounded vector.
    """
    space = env.action_space
    if not isinstance(space, spaces.Box) or not np.isfinite([space.low, space.high]).all():
        raise ValueError(
            f"sim.id: its actions are {space}; only bounded vectors of numbers can be learned here"
        )
    size = int(np.prod(space.shape))
    return ActionSpec(
        names=tuple(f"action_{i}" for i in range(size)),
        units=("unknown",) * size,
        kinds=("environment's own",) * size,
        low=tuple(map(float, space.low.ravel())),
        high=tuple(map(float, space.high.ravel())),
        frame="environment's own",
        rotation="environment's own",
        control_hz=float(env.metadata.get("render_fps") or DEFAULT_HZ),
        gripper_sign="environment's own",
    )


def resize_to_square(picture: np.ndarray, size: int) -> np.ndarray:
    """A uint8 picture [h, w, 3], its proportions kept, centred in a black square [size, size, 3].

    `vla.data.image_fitting.fit_to_square` gives the same pixels for a dataset's picture. Neither
    package imports the other, so both hold the code and a test compares them.
    """
    height, width = picture.shape[:2]
    if height == width == size:
        return picture
    longer = max(height, width)
    inner = max(1, height * size // longer), max(1, width * size // longer)
    shrunk = Image.fromarray(picture).resize((inner[1], inner[0]), Image.Resampling.BOX)
    square = np.zeros((size, size, 3), np.uint8)
    top = (size - inner[0]) // 2
    left = (size - inner[1]) // 2
    square[top : top + inner[0], left : left + inner[1]] = np.asarray(shrunk)
    return square
