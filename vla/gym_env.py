"""`VectorEnv`: environments of a simulator with the interface of gymnasium."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vla.data.observations import RawObservation
    from vla.rl.protocols import VectorEnvironment
    from vla.simulator import Simulator


@dataclass
class VectorEnv:
    """N environments as a gymnasium vector environment with `AutoresetMode.SAME_STEP`.

    An observation is {"images": {camera: uint8 [N, h, w, 3]}, "state": float32 [N, s],
    "instruction": N sentences}: the arguments of `LoadedPolicy.act`. An environment whose episode
    ends starts the next one in the same step, from the next seed. `info["ended"]` marks it, and
    `info["success"]` is True where the episode succeeded.

    Attributes:
        simulator: makes the environments.
        num_envs: number of environments N.
        seed: seed of the next episode.
    """

    simulator: Simulator
    num_envs: int
    seed: int = 0
    _environment: VectorEnvironment = field(init=False)
    _observation: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._environment = self.simulator.environment()

    @property
    def action_names(self) -> tuple[str, ...]:
        """The name of every dimension of an action."""
        return tuple(self.simulator.action_spec["names"])

    @property
    def action_low(self) -> np.ndarray:
        """The lowest action, float32 [A]; lower ones are clipped."""
        return np.array(self.simulator.action_spec["low"], np.float32)

    @property
    def action_high(self) -> np.ndarray:
        """The highest action, float32 [A]; higher ones are clipped."""
        return np.array(self.simulator.action_spec["high"], np.float32)

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start N episodes from seeds `seed` to `seed + N - 1`; None: from the next seeds.

        A seed always gives the same start.
        """
        if seed is not None:
            self.seed = seed
        self._observation = as_arguments(self._environment.reset(self._next_seeds(self.num_envs)))
        return self._copy(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Execute an action [N, A], or a chunk of actions [N, H, A], in every environment.

        Returns observation, reward float32 [N], terminated and truncated bool [N], and info.

        Raises:
            ValueError: `reset` was not called, or the shape of the actions is wrong.
        """
        if not self._observation:
            raise ValueError("call reset before step: no episode has begun")
        values = np.asarray(actions, dtype=np.float32)
        result = self._environment.step(values[:, None] if values.ndim == 2 else values)
        self._observation = as_arguments(result.observation)
        ended = result.terminated | result.truncated
        info = {"success": result.success, "num_steps": result.num_steps, "ended": ended}
        if ended.any():
            info["final_observation"] = self._copy()
            numbers = np.flatnonzero(ended)
            begun = self._environment.reset(self._next_seeds(len(numbers)), numbers)
            self._replace(numbers, as_arguments(begun))
        return self._copy(), result.reward, result.terminated, result.truncated, info

    def close(self) -> None:
        """Release the resources of the environments."""
        close = getattr(self._environment, "close", None)
        if close is not None:
            close()

    def _next_seeds(self, count: int) -> range:
        seeds = range(self.seed, self.seed + count)
        self.seed += count
        return seeds

    def _copy(self) -> dict[str, Any]:
        current = self._observation
        images = {name: picture.copy() for name, picture in current["images"].items()}
        return {
            "images": images,
            "state": current["state"].copy(),
            "instruction": list(current["instruction"]),
        }

    def _replace(self, numbers: np.ndarray, begun: dict[str, Any]) -> None:
        merged = self._copy()
        for name, picture in begun["images"].items():
            merged["images"][name][numbers] = picture
        merged["state"][numbers] = begun["state"]
        for number, text in zip(numbers.tolist(), begun["instruction"], strict=True):
            merged["instruction"][number] = text
        self._observation = merged


def as_arguments(observation: RawObservation) -> dict[str, Any]:
    """Convert an observation to the keyword arguments of `LoadedPolicy.act`."""
    return {
        "images": dict(observation.images),
        "state": np.asarray(observation.proprio),
        "instruction": list(observation.instruction),
    }
