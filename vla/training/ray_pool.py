"""Rollout workers as Ray actors, on this machine or on a cluster.

`RAY_ADDRESS` names a running cluster; without it Ray starts on this machine and ends with the run.
Weights go through Ray's object store: one copy for each node, whatever the number of its workers.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vla.files.pickling import pickle_object
from vla.interrupt import SIGNALS
from vla.training.ray_worker import RolloutActor
from vla.training.rollout_shards import Shard, ShardResult, Weights, WorkerPlan
from vla.training.tensor_arrays import from_arrays, to_arrays

ADDRESS = "RAY_ADDRESS"
"""Variable of the environment with the address of a cluster."""
POLL_SECONDS = 1.0
MAX_LOSSES = 3
"""Workers that a shard may take with it before the run ends."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Ray's settings for a run: no report of its use over the network, no copy of the working folder
where a run was started by `uv run`. A variable that the user has set stays."""


class WorkersLost(RuntimeError):
    """Workers end again and again while they collect the same starts."""


@dataclass
class _Job:
    """What an actor is doing: building itself (`shard` None), or collecting a shard."""

    actor: Any
    shard: Shard | None
    weights: Any = None


class RayPool:
    """Actors that collect shards. A lost actor is replaced, and its shard is collected by another.

    Args:
        num_workers: number of actors.
        resources: Ray's resources of an actor: "CPU", "GPU", "memory" (bytes), or a name of the
            cluster's own. An actor computes in as many threads as it has CPUs, at least one.
        plan: what the actors are built from.
        report: prints a line.

    Raises:
        ValueError: this machine has fewer resources than the actors need.
    """

    def __init__(
        self,
        num_workers: int,
        resources: Mapping[str, float],
        plan: WorkerPlan,
        report: Callable[[str], object] = lambda line: None,
    ) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray
        from ray import cloudpickle

        self._ray = ray
        self._report = report
        self._resources = dict(resources)
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            start_ray()
        self._check_resources(num_workers)
        self._plan = ray.put(pickle_object(plan, cloudpickle))
        self._weights: Any = None
        self._version = 0
        self._waiting: deque[tuple[Shard, Any]] = deque()
        self._idle: deque[Any] = deque()
        self._jobs: dict[Any, _Job] = {}
        self._num_losses: dict[tuple[int, int, int], int] = {}
        self._losses = (0, 0)
        self._ever_built = False
        for _ in range(num_workers):
            self._add_actor()

    @property
    def actors(self) -> list[Any]:
        """The handles of the present actors."""
        return [*self._idle, *(job.actor for job in self._jobs.values())]

    def push_weights(self, weights: Weights) -> None:
        self._version += 1
        self._weights = self._ray.put((self._version, to_arrays(weights)))

    def submit(self, shard: Shard) -> None:
        self._waiting.append((shard, self._weights))
        self._dispatch()

    def next_result(self) -> tuple[Shard, ShardResult] | None:
        """A finished shard; None after a second without one.

        Raises:
            WorkersLost: a shard was lost `MAX_LOSSES` times.
            Exception: an error of the worker's code.
        """
        done, _ = self._ray.wait(list(self._jobs), num_returns=1, timeout=POLL_SECONDS)
        if not done:
            return None
        job = self._jobs.pop(done[0])
        try:
            value = self._ray.get(done[0])
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            self._note_loss(job, error)
            return None
        self._ever_built = True
        self._idle.append(job.actor)
        self._dispatch()
        if job.shard is None:
            return None
        return job.shard, ShardResult.from_state(from_arrays(value))

    def take_losses(self) -> tuple[int, int]:
        losses = self._losses
        self._losses = (0, 0)
        return losses

    def close(self) -> None:
        """Kill the actors; end Ray where this pool has started it."""
        for actor in self.actors:
            self._ray.kill(actor)
        self._idle.clear()
        self._jobs.clear()
        self._waiting.clear()
        if self._started_ray:
            self._ray.shutdown()

    def _add_actor(self) -> None:
        cpus = self._resources.get("CPU", 0)
        own = {n: v for n, v in self._resources.items() if n not in ("CPU", "GPU", "memory")}
        actor: Any = self._ray.remote(RolloutActor)
        handle = actor.options(
            num_cpus=cpus,
            num_gpus=self._resources.get("GPU", 0),
            memory=self._resources.get("memory"),
            resources=own,
            max_restarts=0,
        ).remote(max(1, int(cpus)))
        self._jobs[handle.build.remote(self._plan)] = _Job(handle, None)

    def _dispatch(self) -> None:
        """Give waiting shards to idle actors."""
        while self._waiting and self._idle:
            shard, weights = self._waiting.popleft()
            actor = self._idle.popleft()
            self._jobs[actor.collect.remote(shard, weights)] = _Job(actor, shard, weights)

    def _note_loss(self, job: _Job, error: Exception) -> None:
        """Replace an actor, and hand its shard to another one."""
        self._ray.kill(job.actor)
        reason = str(error).strip().split("\n")[0]
        key = (-1, -1, -1) if job.shard is None else job.shard.id
        self._num_losses[key] = self._num_losses.get(key, 0) + 1
        what = "while it was built" if job.shard is None else f"with {len(job.shard.starts)} starts"
        if self._num_losses[key] >= MAX_LOSSES:
            raise WorkersLost(
                f"{MAX_LOSSES} rollout workers were lost one after the other {what}, at last: "
                f"{reason}; look at their memory (rl.worker_resources) and at Ray's logs"
            ) from error
        lost, taken_over = self._losses
        num_starts = 0
        if job.shard is not None:
            num_starts = len(job.shard.starts)
            self._waiting.appendleft((job.shard, job.weights))
        self._losses = lost + 1, taken_over + num_starts
        self._report(f"a rollout worker was lost {what}, another one takes over: {reason}")
        self._add_actor()
        self._dispatch()

    def _check_resources(self, num_workers: int) -> None:
        """Refuse more workers than a local Ray has room for; a cluster may still grow."""
        if os.environ.get(ADDRESS):
            return
        available = self._ray.cluster_resources()
        for name, amount in self._resources.items():
            if amount * num_workers > available.get(name, 0.0):
                if self._started_ray:
                    self._ray.shutdown()
                raise ValueError(
                    f"rl.workers ({num_workers}) need rl.worker_resources.{name} ({amount:g}) "
                    f"each, and this machine has {available.get(name, 0.0):g}: lower one of them, "
                    f"or name a cluster in {ADDRESS}"
                )


def start_ray() -> None:
    """Connect to the cluster of `RAY_ADDRESS`, or start Ray on this machine.

    Raises:
        ValueError: nothing answers at `RAY_ADDRESS`.
    """
    import ray

    address = os.environ.get(ADDRESS) or "local"
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        with kept_signal_handlers():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except ConnectionError as error:
        raise ValueError(
            f"{ADDRESS} ({address}): no Ray cluster answers there ({error}): start one by "
            "`ray start --head`, or unset the variable to use this machine"
        ) from error


@contextmanager
def kept_signal_handlers() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGTERM after the block: Ray sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
