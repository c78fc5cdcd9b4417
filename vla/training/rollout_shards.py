"""Rollouts in shards: the starts of a rollout, split over workers that hold policy and environment.

A shard is a pure function of the weights, its starts and its seed. So it does not matter which
worker collects it, and a shard that is lost with its worker is collected again with the same
result. `vla.training.ray_pool` runs the workers as Ray actors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from vla.config.training import Rl
from vla.rl.dynamic_sampling import merge_rollouts
from vla.rl.protocols import Observe, Policy, RolloutSaver, VectorEnvironment
from vla.rl.rollout import collect_rollout
from vla.rl.rollout_state import decode_rollout, encode_rollout
from vla.training.seed import derive_seed, seed_everything
from vla.types import Decision, Observation, Rollout, StateDict

Weights = dict[str, Tensor]
ShardId = tuple[int, int, int]
"""(iteration, attempt, number) of a shard; unique in a run."""


@dataclass(frozen=True)
class Shard:
    """A part of a rollout's starts, with all that its result depends on besides the weights.

    `version` counts the updates before the weights. `settings` are those of the parts
    (`ShardPart.shard_settings`) by name.
    """

    iteration: int
    attempt: int
    number: int
    starts: tuple[int, ...]
    seed: int
    version: int
    greedy: bool = False
    settings: Mapping[str, StateDict] = field(default_factory=dict)

    @property
    def id(self) -> ShardId:
        return self.iteration, self.attempt, self.number


@dataclass(frozen=True)
class ShardResult:
    """The rollout of a shard, and the states of the parts after it."""

    rollout: Rollout
    parts: Mapping[str, StateDict]

    def state_dict(self) -> StateDict:
        """The result in the types of a checkpoint."""
        return {"rollout": encode_rollout(self.rollout), "parts": dict(self.parts)}

    @staticmethod
    def from_state(state: StateDict) -> ShardResult:
        """The result that `state_dict` encoded."""
        return ShardResult(decode_rollout(state["rollout"]), state["parts"])


@runtime_checkable
class ShardPart(Protocol):
    """A part of a run that changes while a rollout is collected.

    Every worker has one of its own, and the learner's takes over what theirs have collected.
    """

    def shard_settings(self) -> StateDict:
        """What a worker's part must know before a shard; called in the learner."""
        ...

    def start_shard(self, iteration: int, number: int, settings: StateDict) -> None:
        """Clear the part before a shard; called in the worker."""
        ...

    def state_dict(self) -> StateDict:
        """What the part has collected; called in the worker after a shard."""
        ...

    def add_shards(self, states: Sequence[StateDict]) -> None:
        """Take over the states of a rollout's shards, in their order; called in the learner."""
        ...


@dataclass
class ShardCollector:
    """Policy, environment and parts of a worker."""

    learner: Any
    environment: VectorEnvironment
    observe: Observe
    group_size: int
    parts: Mapping[str, ShardPart] = field(default_factory=dict)
    before_step: Callable[[Observation, Decision, np.ndarray], None] | None = None

    def collect(self, shard: Shard) -> ShardResult:
        """Collect a shard by the present weights."""
        policy: Policy = self.learner
        seed_everything(shard.seed)
        for name, part in self.parts.items():
            part.start_shard(shard.iteration, shard.number, shard.settings[name])
        rollout = collect_rollout(
            policy,
            self.environment,
            shard.starts,
            self.group_size,
            self.observe,
            greedy=shard.greedy,
            version=shard.version,
            before_step=self.before_step,
        )
        return ShardResult(rollout, {name: part.state_dict() for name, part in self.parts.items()})


@runtime_checkable
class WorkerPlan(Protocol):
    """What a worker is built from; it is pickled once and sent to every worker."""

    def build(self, num_threads: int) -> ShardCollector:
        """Build policy and environment in the worker's process."""
        ...


@runtime_checkable
class ShardPool(Protocol):
    """Workers that collect shards."""

    def push_weights(self, weights: Weights) -> None:
        """Give the workers new weights, for shards that are submitted from now on."""
        ...

    def submit(self, shard: Shard) -> None:
        """Have a shard collected by the weights pushed last."""
        ...

    def next_result(self) -> tuple[Shard, ShardResult] | None:
        """A finished shard; None after a second without one."""
        ...

    def take_losses(self) -> tuple[int, int]:
        """(workers lost, starts that other workers took over) since the last call."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


def start_ray_pool(rl: Rl, plan: WorkerPlan, report: Callable[[str], object]) -> ShardPool:
    """Start `rl.workers` workers by Ray."""
    from vla.training.ray_pool import RayPool

    return RayPool(rl.workers, rl.worker_resources, plan, report)


class InProcessPool:
    """The pool of a single process: shards are collected one by one, in the order of submission."""

    def __init__(self, collector: ShardCollector) -> None:
        self.collector = collector
        self._waiting: list[tuple[Shard, Weights]] = []
        self._weights: Weights = {}

    def push_weights(self, weights: Weights) -> None:
        self._weights = {name: weight.clone() for name, weight in weights.items()}

    def submit(self, shard: Shard) -> None:
        self._waiting.append((shard, self._weights))

    def next_result(self) -> tuple[Shard, ShardResult] | None:
        if not self._waiting:
            return None
        shard, weights = self._waiting.pop(0)
        load_pushed_weights(self.collector.learner, weights)
        return shard, self.collector.collect(shard)

    def take_losses(self) -> tuple[int, int]:
        return 0, 0

    def close(self) -> None:
        self._waiting.clear()


@dataclass(frozen=True)
class RolloutOrder:
    """A rollout to collect: its starts, and the number of updates before the weights."""

    iteration: int
    attempt: int
    starts: Sequence[int]
    version: int
    greedy: bool = False


class RolloutWorkers:
    """Rollouts of an iteration by the workers of a pool.

    Args:
        start_pool: starts the workers; called before the first rollout.
        learner: the policy whose weights the workers get.
        parts: the learner's parts by name; those of the workers have the same names.
        num_shards: number of shards of a rollout.
        seed: seed of the run, from which the seeds of the shards derive.
    """

    def __init__(
        self,
        start_pool: Callable[[], ShardPool],
        learner: nn.Module,
        parts: Mapping[str, ShardPart],
        num_shards: int,
        seed: int,
    ) -> None:
        self.start_pool = start_pool
        self.learner = learner
        self.parts = parts
        self.num_shards = num_shards
        self.seed = seed
        self._pool: ShardPool | None = None
        self._pushed: int | None = None
        self._submitted: dict[tuple[int, int], list[Shard]] = {}
        self._results: dict[ShardId, ShardResult] = {}

    def submit(self, order: RolloutOrder, skip: Sequence[int] = ()) -> list[Shard]:
        """Have the shards of a rollout collected by the present weights, without waiting.

        `skip` are the numbers of shards that are there already.
        """
        if self._pool is None:
            self._pool = self.start_pool()
        version = sum(weight._version for weight in trained_weights(self.learner).values())
        if version != self._pushed:
            self._pool.push_weights(trained_weights(self.learner))
            self._pushed = version
        shards = self._split(order)
        for shard in shards:
            if shard.number not in skip:
                self._pool.submit(shard)
        self._submitted[order.iteration, order.attempt] = shards
        return shards

    def collect(self, order: RolloutOrder, saver: RolloutSaver) -> Rollout:
        """The rollout of an order, whether it was submitted before or not.

        `saver` saves the finished shards of an unfinished rollout.
        """
        key = order.iteration, order.attempt
        saved = saver.load() or {}
        for number, state in saved.items():
            shard_id = (*key, int(number))
            self._results[shard_id] = ShardResult.from_state(state)
        shards = self._submitted.get(key)
        if shards is None:
            shards = self.submit(order, skip=[int(number) for number in saved])
        missing = {shard.id for shard in shards} - self._results.keys()
        while missing:
            self._receive()
            missing = {shard.id for shard in shards} - self._results.keys()
            if missing:
                saver.save_if_due(lambda: self._finished(shards))
        del self._submitted[key]
        return self._merge([self._results.pop(shard.id) for shard in shards])

    def close(self) -> None:
        """End the workers, with what they are collecting."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _split(self, order: RolloutOrder) -> list[Shard]:
        """Consecutive starts for each shard."""
        count = min(self.num_shards, len(order.starts))
        settings = {name: part.shard_settings() for name, part in self.parts.items()}
        return [
            Shard(
                order.iteration,
                order.attempt,
                number,
                tuple(int(start) for start in starts),
                derive_seed(self.seed, "shard", order.iteration, order.attempt, number),
                order.version,
                order.greedy,
                settings,
            )
            for number, starts in enumerate(np.array_split(np.asarray(order.starts), count))
        ]

    def _receive(self) -> None:
        assert self._pool is not None
        received = self._pool.next_result()
        if received is not None:
            shard, result = received
            self._results[shard.id] = result

    def _finished(self, shards: Sequence[Shard]) -> StateDict:
        """The states of finished shards by number."""
        results = ((shard.number, self._results.get(shard.id)) for shard in shards)
        return {str(number): one.state_dict() for number, one in results if one is not None}

    def _merge(self, results: Sequence[ShardResult]) -> Rollout:
        for name, part in self.parts.items():
            part.add_shards([result.parts[name] for result in results])
        merged = merge_rollouts([result.rollout for result in results])
        lost, taken_over = (0, 0) if self._pool is None else self._pool.take_losses()
        losses = {"workers_lost": float(lost), "starts_taken_over": float(taken_over)}
        return replace(merged, metrics={**merged.metrics, **losses})


def trained_weights(learner: nn.Module) -> Weights:
    """Weights that an update may change, by name: trainable parameters, and buffers."""
    trained = {name: p.detach() for name, p in learner.named_parameters() if p.requires_grad}
    return trained | dict(learner.named_buffers())


@torch.no_grad()
def load_pushed_weights(learner: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load `trained_weights` of another process."""
    own = trained_weights(learner)
    for name, weight in weights.items():
        own[name].copy_(weight)
