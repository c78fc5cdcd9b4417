"""Collection of demonstrations: an expert acts in many environments until enough episodes succeed.

Seeds are tried in order and every failure adds one more. The episodes are therefore the first
`num_episodes` seeds on which the expert succeeds, for any number of environments and interruptions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from vla.data.lerobot_format import DatasetSpec, Storage
from vla.data.lerobot_writer import Episode, LeRobotWriter
from vla.data.observations import RawObservation
from vla.files.reading import JsonMapping, JsonObject

PROPRIO_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper_opening")
MAX_FAILURES = 50
"""Collection stops after this many failures if they outnumber the successes."""


@runtime_checkable
class StepOutcome(Protocol):
    """The part of a step's result that collection needs: bool [num_envs] each."""

    @property
    def terminated(self) -> np.ndarray: ...
    @property
    def truncated(self) -> np.ndarray: ...
    @property
    def success(self) -> np.ndarray: ...


@runtime_checkable
class ActionDescription(Protocol):
    """An environment's action spec; `sim.action_spec.ActionSpec` is one."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def control_hz(self) -> float: ...
    def to_dict(self) -> JsonObject: ...


@runtime_checkable
class Environments(Protocol):
    """The part of a vector environment that collection needs; `sim.vector.VectorEnvironment` has
    it."""

    num_envs: int
    cameras: tuple[str, ...]
    image_size: int

    @property
    def action_spec(self) -> ActionDescription: ...
    def reset(self, seeds: Sequence[int], ids: np.ndarray, *, render: bool) -> object: ...
    def step(self, actions: np.ndarray, ids: np.ndarray, *, render: bool) -> StepOutcome: ...
    def observe(self, ids: np.ndarray) -> RawObservation: ...


@runtime_checkable
class Expert(Protocol):
    """A scripted policy for all environments; `perturbed` [num_envs] marks last actions that were
    perturbations."""

    @property
    def perturbed(self) -> np.ndarray: ...
    def reset(self, ids: np.ndarray) -> None: ...
    def act(self, ids: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class CollectionSummary:
    """The counts and the duration of one call of `collect`."""

    num_episodes: int
    num_frames: int
    num_failures: int
    seconds: float


@dataclass
class _Recording:
    """One environment's episode so far."""

    seed: int
    instruction: str = ""
    images: dict[str, list[np.ndarray]] = field(default_factory=dict)
    proprio: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    perturbed: list[bool] = field(default_factory=list)

    def append(
        self, observation: RawObservation, row: int, action: np.ndarray, perturbed: bool
    ) -> None:
        for camera, images in observation.images.items():
            self.images.setdefault(camera, []).append(images[row])
        self.instruction = observation.instruction[row]
        self.proprio.append(observation.proprio[row])
        self.actions.append(action)
        self.perturbed.append(perturbed)

    def episode(self) -> Episode:
        return Episode(
            images={camera: np.stack(images) for camera, images in self.images.items()},
            proprio=np.stack(self.proprio).astype(np.float32),
            actions=np.stack(self.actions).astype(np.float32),
            perturbed=np.array(self.perturbed, dtype=bool),
            instruction=self.instruction,
            seed=self.seed,
            success=True,
        )


def dataset_spec(
    environments: Environments, robot: str, storage: Storage, source: JsonMapping
) -> DatasetSpec:
    """The spec of a dataset that is collected in `environments`, with their action spec."""
    spec = environments.action_spec
    return DatasetSpec(
        fps=round(spec.control_hz),
        robot=robot,
        cameras=tuple(environments.cameras),
        image_size=(environments.image_size, environments.image_size),
        proprio_names=getattr(environments, "proprio_names", PROPRIO_NAMES),
        action_names=tuple(spec.names),
        action_spec=spec.to_dict(),
        source=source,
        storage=storage,
    )


def collect(
    environments: Environments,
    expert: Expert,
    writer: LeRobotWriter,
    *,
    num_episodes: int,
    first_seed: int,
    on_episode: Callable[[int, int], None] = lambda successes, failures: None,
) -> CollectionSummary:
    """Write successful episodes until there are `num_episodes`, including those in `writer`.

    Args:
        environments: of the expert; every control step is rendered and recorded.
        expert: the policy for those environments.
        writer: stores the successes; a reopened writer continues an interrupted collection.
        num_episodes: number of successes.
        first_seed: seeds are tried upwards from here.
        on_episode: called with the counts of successes and failures, first and after every episode.

    Raises:
        ValueError: the expert fails more often than it succeeds.
    """
    begin = time.perf_counter()
    on_episode(len(writer.finished_seeds), len(writer.failed_seeds))
    seeds = _untried(first_seed, writer.finished_seeds | writer.failed_seeds)
    recordings: dict[int, _Recording] = {}
    free = list(range(environments.num_envs))
    while True:
        num_missing = num_episodes - len(writer.finished_seeds) - len(recordings)
        started = {free.pop(0): _Recording(next(seeds)) for _ in range(min(num_missing, len(free)))}
        if started:
            ids = np.array(list(started))
            environments.reset(
                [recording.seed for recording in started.values()], ids, render=False
            )
            expert.reset(ids)
            recordings |= started
        if not recordings:
            break
        for env in _advance(environments, expert, recordings, writer):
            del recordings[env]
            free.append(env)
            on_episode(len(writer.finished_seeds), len(writer.failed_seeds))
        _check_expert(writer)
    seconds = time.perf_counter() - begin
    return CollectionSummary(
        len(writer.finished_seeds), writer.num_frames, len(writer.failed_seeds), seconds
    )


def _advance(
    environments: Environments,
    expert: Expert,
    recordings: Mapping[int, _Recording],
    writer: LeRobotWriter,
) -> list[int]:
    """Step every recorded environment once; the environments whose episode ended."""
    ids = np.array(sorted(recordings))
    observation = environments.observe(ids)
    actions = expert.act(ids)
    perturbed = np.asarray(expert.perturbed)[ids]
    for row, env in enumerate(ids):
        recordings[int(env)].append(observation, row, actions[row], bool(perturbed[row]))
    # `observe` renders at the next step, and only where the episode continues.
    result = environments.step(actions[:, None], ids, render=False)
    ended = np.flatnonzero(result.terminated | result.truncated)
    for row in ended:
        recording = recordings[int(ids[row])]
        if result.success[row]:
            writer.add(recording.episode())
        else:
            writer.record_failure(recording.seed)
    return [int(env) for env in ids[ended]]


def _untried(first: int, tried: frozenset[int]) -> Iterator[int]:
    seed = first
    while True:
        if seed not in tried:
            yield seed
        seed += 1


def _check_expert(writer: LeRobotWriter) -> None:
    failures = len(writer.failed_seeds)
    successes = len(writer.finished_seeds)
    if failures >= MAX_FAILURES and failures > successes:
        raise ValueError(
            f"the expert failed on {failures} of {failures + successes} starts: raise "
            "sim.max_steps, or lower the "
            f"expert's noise or its burst probability"
        )
