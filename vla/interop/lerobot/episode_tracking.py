"""Environments that say which place and which episode every row belongs to: LeRobot's policies
remember what they saw and what they still mean to do, row by row, while our rollouts refill a place
as soon as it falls free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from vla.simulator import Simulator
from vla.types import Observation

Episodes = Iterator[int]
"""Numbers that no two episodes share."""


@dataclass(frozen=True)
class TrackedObservation:
    """What n environments show, with the place [n] and the episode [n] of each."""

    images: Mapping[str, np.ndarray]
    proprio: np.ndarray
    instruction: Sequence[str]
    place: Int[np.ndarray, "n"]
    episode: Int[np.ndarray, "n"]


class EpisodeTrackingEnvironment:
    """A vector environment whose observations are `TrackedObservation`."""

    def __init__(self, environment: Any, episodes: Episodes):
        self.environment, self.episodes = environment, episodes
        self.episode = np.zeros(environment.num_envs, dtype=np.int64)

    @property
    def num_envs(self) -> int:
        return self.environment.num_envs

    def reset(self, seeds: Sequence[int], ids: np.ndarray | None = None) -> TrackedObservation:
        places = np.arange(len(seeds)) if ids is None else ids
        self.episode[places] = [next(self.episodes) for _ in seeds]
        return self.placed(self.environment.reset(seeds, places), places)

    def step(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Any:
        places = np.arange(self.environment.num_envs) if ids is None else ids
        result = self.environment.step(actions, places)
        return replace(result, observation=self.placed(result.observation, places))

    def observe(self, ids: np.ndarray) -> TrackedObservation:
        return self.placed(self.environment.observe(ids), ids)

    def placed(self, seen: Any, places: np.ndarray) -> TrackedObservation:
        return TrackedObservation(
            seen.images, seen.proprio, seen.instruction, places.copy(), self.episode[places]
        )


class EpisodeTrackingSimulator:
    """A world whose environments are placed."""

    def __init__(self, world: Simulator, episodes: Episodes):
        self.world, self.episodes = world, episodes
        self.known: dict[int, EpisodeTrackingEnvironment] = {}

    @property
    def action_spec(self) -> Mapping[str, Any]:
        return self.world.action_spec

    @property
    def proprio_names(self) -> Sequence[str]:
        return self.world.proprio_names

    @property
    def proprio_size(self) -> int:
        return self.world.proprio_size

    @property
    def cameras(self) -> Sequence[str] | None:
        return self.world.cameras

    def scenes(self) -> Any:
        return self.world.scenes()

    def expert(self, environment: Any, seed: int, expert_perturbation_probability: float) -> Any:
        return self.world.expert(environment, seed, expert_perturbation_probability)

    def texts(self) -> list[str]:
        return self.world.texts()

    def question_kind(self, question: str) -> str:
        return self.world.question_kind(question)

    def task_name(self, instruction: str) -> str:
        return self.world.task_name(instruction)

    def environment(self) -> EpisodeTrackingEnvironment:
        return self._placed(self.world.environment())

    def recorder(self, num_envs: int) -> EpisodeTrackingEnvironment:
        return self._placed(self.world.recorder(num_envs))

    def _placed(self, environment: Any) -> EpisodeTrackingEnvironment:
        return self.known.setdefault(
            id(environment), EpisodeTrackingEnvironment(environment, self.episodes)
        )


def with_episode_tracking(
    make_world: Callable[[Any], Simulator],
) -> Callable[[Any], EpisodeTrackingSimulator]:
    """Makes worlds that never number two episodes alike."""
    episodes = count()
    return lambda settings: EpisodeTrackingSimulator(make_world(settings), episodes)


@dataclass
class EpisodeTrackingObserver:
    """Turns `TrackedObservation` into an `Observation` whose tokens [B, 3] are place, episode and number of the
    instruction, which `texts` holds: LeRobot's policies read text by their own tokenizers.
    """

    texts: list[str] = field(default_factory=list)

    def __call__(self, seen: TrackedObservation) -> Observation:
        for text in seen.instruction:
            if text not in self.texts:
                self.texts.append(text)
        numbers = [self.texts.index(text) for text in seen.instruction]
        tokens = torch.from_numpy(
            np.stack([seen.place, seen.episode, np.array(numbers, dtype=np.int64)], axis=1)
        )
        return Observation(
            images={
                name: torch.from_numpy(np.ascontiguousarray(image))
                for name, image in seen.images.items()
            },
            proprio=torch.from_numpy(np.asarray(seen.proprio, dtype=np.float32)),
            tokens=tokens,
            token_mask=torch.ones_like(tokens, dtype=torch.bool),
        )
