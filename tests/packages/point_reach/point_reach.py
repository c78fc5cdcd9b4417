"""A simulator of a user's package: a point in the plane goes to a coloured mark."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

SPEC = {
    "names": ["dx", "dy"],
    "units": ["m", "m"],
    "kinds": ["delta", "delta"],
    "low": [-0.1, -0.1],
    "high": [0.1, 0.1],
    "frame": "world",
    "control_hz": 10.0,
}
NEAR = 0.12


@dataclass(frozen=True)
class PointSettings:
    """Settings of the section `sim`."""

    robot: str
    num_envs: int
    cameras: tuple[str, ...]
    image_size: int
    max_steps: int
    reward: dict[str, float]
    speed: float


@dataclass(frozen=True)
class Seen:
    images: dict[str, np.ndarray]
    proprio: np.ndarray
    instruction: list[str]


@dataclass(frozen=True)
class Step:
    observation: Seen
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray
    num_steps: np.ndarray
    metrics: dict[str, np.ndarray]
    frames: dict[str, np.ndarray]


@dataclass(frozen=True)
class Spec:
    """What an action means, with the attributes that datasets ask for."""

    names: tuple[str, ...] = ("dx", "dy")
    control_hz: float = 10.0

    def to_dict(self) -> dict[str, Any]:
        return dict(SPEC)


class Points:
    """N points; an episode ends near the mark or after `max_steps`."""

    action_spec = Spec()
    proprio_names = ("x", "y")

    def __init__(self, settings: PointSettings, num_envs: int, record: bool):
        self.settings = settings
        self.num_envs = num_envs
        self.record = record
        self.cameras = settings.cameras
        self.image_size = settings.image_size
        self.max_steps = settings.max_steps
        self.place = np.zeros((num_envs, 2))
        self.mark = np.zeros((num_envs, 2))
        self.count = np.zeros(num_envs, dtype=np.int64)
        self.reached = np.zeros(num_envs, dtype=bool)

    def reset(self, seeds: Any, ids: Any = None, *, render: bool = True) -> Seen:
        ids = np.arange(len(seeds)) if ids is None else np.asarray(ids)
        for i, seed in zip(ids, seeds):
            rng = np.random.default_rng(int(seed))
            self.place[i], self.mark[i] = rng.uniform(-0.5, 0.5, (2, 2))
        self.count[ids] = 0
        self.reached[ids] = False
        return self.observe(ids)

    def step(self, actions: np.ndarray, ids: Any = None, *, render: bool = True) -> Step:
        ids = np.arange(self.num_envs) if ids is None else np.asarray(ids)
        steps, frames = np.zeros(len(ids), dtype=np.int64), []
        gained = np.zeros(len(ids), dtype=np.float32)
        for h in range(actions.shape[1]):
            running = ~(self.reached[ids] | (self.count[ids] >= self.max_steps))
            moved = ids[running]
            change = np.clip(actions[running, h], SPEC["low"], SPEC["high"])
            self.place[moved] += self.settings.speed * change
            self.count[moved] += 1
            steps += running
            distance = np.linalg.norm(self.place[ids] - self.mark[ids], axis=1)
            gained += (running & (distance < NEAR)) * self.settings.reward["success"]
            self.reached[ids] |= distance < NEAR
            if self.record:
                frames.append(self.observe(ids).images)
        success = self.reached[ids].copy()
        films = {c: np.stack([f[c] for f in frames], 1) for c in self.cameras} if frames else {}
        truncated = (self.count[ids] >= self.max_steps) & ~success
        terms = {"success": success.astype(np.float32)}
        seen = self.observe(ids)
        return Step(seen, gained, success.copy(), truncated, success, steps, terms, films)

    def observe(self, ids: Any = None, *, render: bool = True) -> Seen:
        ids = np.arange(self.num_envs) if ids is None else np.asarray(ids)
        size = self.image_size
        picture = np.full((len(ids), size, size, 3), 255, np.uint8)
        for row, i in enumerate(ids):
            for place, color in ((self.mark[i], (255, 0, 0)), (self.place[i], (0, 0, 0))):
                x, y = np.clip(((place + 1) / 2 * size).astype(int), 1, size - 2)
                picture[row, y - 1 : y + 2, x - 1 : x + 2] = color
        images = {camera: picture.copy() for camera in self.cameras}
        return Seen(images, self.place[ids].astype(np.float32), ["go to the mark"] * len(ids))

    def close(self) -> None:
        """Nothing is open."""


class PointExpert:
    """Goes straight to the mark."""

    def __init__(self, environment: Points):
        self.environment = environment
        self.perturbed = np.zeros(environment.num_envs, dtype=bool)

    def reset(self, ids: Any = None) -> None:
        """Nothing is kept."""

    def act(self, ids: Any = None) -> np.ndarray:
        env = self.environment
        ids = np.arange(env.num_envs) if ids is None else np.asarray(ids)
        return np.clip(env.mark[ids] - env.place[ids], -0.1, 0.1).astype(np.float32)


@dataclass(frozen=True)
class NoScenes:
    """There is nothing to ask about."""

    num_plan_numbers: int = 1
    object_names: tuple[str, ...] = ()


@dataclass
class PointSimulator:
    """The simulator that `sim.simulator=point` names."""

    Settings = PointSettings
    has_scenes = False
    restores_states = False
    perturbations = ("none",)
    start_settings = ("robot", "max_steps")
    cameras = ("above",)
    proprio_names = ("x", "y")
    proprio_size = 2
    action_spec = SPEC

    settings: PointSettings
    made: dict[tuple[int, bool], Points] = field(default_factory=dict)

    @staticmethod
    def check(settings: PointSettings) -> None:
        if settings.cameras != ("above",):
            raise ValueError(f"sim.cameras ({list(settings.cameras)}) must be [above]")

    @staticmethod
    def task_names(settings: PointSettings) -> tuple[str, ...]:
        return ("point_reach",)

    def environment(self) -> Points:
        return self._points(self.settings.num_envs, False)

    def recorder(self, num_envs: int) -> Points:
        return self._points(num_envs, True)

    def _points(self, num_envs: int, record: bool) -> Points:
        key = (num_envs, record)
        return self.made.setdefault(key, Points(self.settings, num_envs, record))

    def scenes(self) -> NoScenes:
        return NoScenes()

    def expert(
        self, environment: Points, seed: int, expert_perturbation_probability: float
    ) -> PointExpert:
        return PointExpert(environment)

    def texts(self) -> list[str]:
        return ["go to the mark"]

    def question_kind(self, question: str) -> str:
        return "unknown"

    def task_name(self, instruction: str) -> str:
        return instruction
