"""Environments whose observations carry the slot and the episode of every row.

Policies of LeRobot keep queues of past observations and pending actions for each row. Our rollouts
reuse a slot for the next episode as soon as it is free, so the queues need both numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from vla.acting import PolicyInput
from vla.simulator import Simulator
from vla.types import Observation

Episodes = Iterator[int]
"""A counter of episodes; no two get the same number."""


@dataclass(frozen=True)
class TrackedObservation:
    """Observations of n environments, with the slot [n] (`place`) and the episode [n] of each."""

    images: Mapping[str, np.ndarray]
    proprio: np.ndarray
    instruction: Sequence[str]
    place: Int[np.ndarray, "n"]
    episode: Int[np.ndarray, "n"]


class EpisodeTrackingEnvironment:
    """A vector environment with `TrackedObservation` in place of plain observations."""

    def __init__(self, environment: Any, episodes: Episodes):
        self.environment = environment
        self.episodes = episodes
        self.episode = np.zeros(environment.num_envs, dtype=np.int64)

    @property
    def num_envs(self) -> int:
        return self.environment.num_envs

    def reset(self, seeds: Sequence[int], ids: np.ndarray | None = None) -> TrackedObservation:
        places = np.arange(len(seeds)) if ids is None else ids
        self.episode[places] = [next(self.episodes) for _ in seeds]
        return self.track(self.environment.reset(seeds, places), places)

    def step(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Any:
        places = np.arange(self.environment.num_envs) if ids is None else ids
        result = self.environment.step(actions, places)
        return replace(result, observation=self.track(result.observation, places))

    def observe(self, ids: np.ndarray) -> TrackedObservation:
        return self.track(self.environment.observe(ids), ids)

    def track(self, observation: Any, places: np.ndarray) -> TrackedObservation:
        """Add slots and episodes to an observation."""
        return TrackedObservation(
            observation.images,
            observation.proprio,
            observation.instruction,
            places.copy(),
            self.episode[places],
        )


class EpisodeTrackingSimulator:
    """A simulator with `EpisodeTrackingEnvironment`s; everything else is forwarded."""

    def __init__(self, simulator: Simulator, episodes: Episodes):
        self.simulator = simulator
        self.episodes = episodes
        self.tracked: dict[int, EpisodeTrackingEnvironment] = {}

    @property
    def action_spec(self) -> Mapping[str, Any]:
        return self.simulator.action_spec

    @property
    def proprio_names(self) -> Sequence[str]:
        return self.simulator.proprio_names

    @property
    def proprio_size(self) -> int:
        return self.simulator.proprio_size

    @property
    def cameras(self) -> Sequence[str] | None:
        return self.simulator.cameras

    def scenes(self) -> Any:
        return self.simulator.scenes()

    def expert(self, environment: Any, seed: int, expert_perturbation_probability: float) -> Any:
        return self.simulator.expert(environment, seed, expert_perturbation_probability)

    def texts(self) -> list[str]:
        return self.simulator.texts()

    def question_kind(self, question: str) -> str:
        return self.simulator.question_kind(question)

    def task_name(self, instruction: str) -> str:
        return self.simulator.task_name(instruction)

    def environment(self) -> EpisodeTrackingEnvironment:
        return self._tracked(self.simulator.environment())

    def recorder(self, num_envs: int) -> EpisodeTrackingEnvironment:
        return self._tracked(self.simulator.recorder(num_envs))

    def _tracked(self, environment: Any) -> EpisodeTrackingEnvironment:
        return self.tracked.setdefault(
            id(environment), EpisodeTrackingEnvironment(environment, self.episodes)
        )


def with_episode_tracking(
    make_simulator: Callable[[Any], Simulator],
) -> Callable[[Any], EpisodeTrackingSimulator]:
    """Wrap a factory of simulators; all simulators it makes share one counter of episodes."""
    episodes = count()
    return lambda settings: EpisodeTrackingSimulator(make_simulator(settings), episodes)


@dataclass
class EpisodeTrackingObserver:
    """Converts `TrackedObservation`s to `Observation`s for policies of LeRobot.

    Tokens [B, 3] are slot, episode and number of the instruction in `texts`, because these policies
    tokenize text themselves.
    """

    texts: list[str] = field(default_factory=list)

    def __call__(self, rows: TrackedObservation | PolicyInput) -> Observation:
        for text in rows.instruction:
            if text not in self.texts:
                self.texts.append(text)
        numbers = [self.texts.index(text) for text in rows.instruction]
        tokens = torch.from_numpy(
            np.stack([rows.place, rows.episode, np.array(numbers, dtype=np.int64)], axis=1)
        )
        return Observation(
            images={
                name: torch.from_numpy(np.ascontiguousarray(image))
                for name, image in rows.images.items()
            },
            proprio=torch.from_numpy(np.asarray(rows.proprio, dtype=np.float32)),
            tokens=tokens,
            token_mask=torch.ones_like(tokens, dtype=torch.bool),
        )
