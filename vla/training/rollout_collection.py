"""Rollout collection of an iteration, for robots and text: seeded starts, groups, dynamic
sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vla.rl.dynamic_sampling import collect_informative
from vla.rl.protocols import Observe, Policy, VectorEnvironment
from vla.rl.rollout import collect_rollout
from vla.training.distributed import SINGLE_PROCESS, Processes, shard_rows
from vla.training.resumable_work import ResumableWork
from vla.training.rollout_shards import RolloutOrder, RolloutWorkers
from vla.types import Decision, Observation, Rollout

DrawStarts = Callable[[int, int, int], Sequence[int]]
"""This process's starts by (iteration, attempt, count): a pure function."""


@dataclass(frozen=True)
class SeededStarts:
    """Training starts: random seeds in [first, last], a pure function of iteration and attempt.

    Several processes split the draw of a single one.
    """

    first: int
    last: int
    seed: int
    processes: Processes = SINGLE_PROCESS

    def draw(self, iteration: int, attempt: int, count: int) -> list[int]:
        rng = np.random.default_rng([self.seed, iteration, attempt])
        drawn = rng.integers(self.first, self.last + 1, size=count * self.processes.num_processes)
        return shard_rows(drawn, self.processes).tolist()


@dataclass(frozen=True)
class RolloutCollector:
    """Collector of one rollout: `num_starts()` starts with `group_size` trajectories each.

    Args:
        max_resamples: above 0, groups of equal returns are replaced by at most that many further
            rollouts (dynamic sampling; Yu 2025, DAPO).
        finish: called with (iteration, rollout); checks or masks each rollout before it is saved.
        is_greedy: for an iteration, take the likeliest decisions instead of draws.
        workers: collect the rollouts, in place of this process.
        num_async_iterations: iterations whose rollouts the workers collect one update ahead, by
            the weights before that update; 0: none.
    """

    policy: Policy
    environment: VectorEnvironment
    observe: Observe
    draw_starts: DrawStarts
    num_starts: Callable[[], int]
    group_size: int
    max_resamples: int = 0
    finish: Callable[[int, Rollout], Rollout] = lambda iteration, rollout: rollout
    before_step: Callable[[Observation, Decision, np.ndarray], None] | None = None
    is_greedy: Callable[[int], bool] = lambda iteration: False
    workers: RolloutWorkers | None = None
    num_async_iterations: int = 0

    def collect(self, iteration: int, pieces: ResumableWork) -> Rollout:
        """The rollout of an iteration; `pieces` saves its finished parts and the unfinished one."""
        attempt = 0

        def sample(count: int) -> Rollout:
            nonlocal attempt
            starts = self.draw_starts(iteration, attempt, count)
            attempt += 1
            number = attempt - 1
            return pieces.next_rollout(lambda: self._roll_out(iteration, number, starts, pieces))

        num_starts = self.num_starts()
        if not self.max_resamples:
            rollout = sample(num_starts)
        else:
            rollout = collect_informative(sample, num_starts, self.max_resamples)
        self._collect_ahead(iteration)
        return rollout

    def _collect_ahead(self, iteration: int) -> None:
        """Have the next iteration's rollout collected by the present weights, if it may be."""
        following = iteration + 1
        if self.workers is None or following >= self.num_async_iterations:
            return
        starts = self.draw_starts(following, 0, self.num_starts())
        self.workers.submit(
            RolloutOrder(following, 0, starts, iteration, self.is_greedy(following))
        )

    def _roll_out(
        self, iteration: int, attempt: int, starts: Sequence[int], pieces: ResumableWork
    ) -> Rollout:
        if self.workers is not None:
            order = RolloutOrder(iteration, attempt, starts, iteration, self.is_greedy(iteration))
            return self.finish(iteration, self.workers.collect(order, pieces))
        rollout = collect_rollout(
            self.policy,
            self.environment,
            starts,
            self.group_size,
            self.observe,
            version=iteration,
            before_step=self.before_step,
            greedy=self.is_greedy(iteration),
            saver=pieces,
        )
        return self.finish(iteration, rollout)


def check_rewards(iteration: int, rollout: Rollout) -> Rollout:
    """Return a rollout whose rewards are all finite, as a simulator's must be. A verifier may give
    NaN.

    Raises:
        FloatingPointError: with the number of trajectories that have another reward.
    """
    num_bad = int((~torch.isfinite(rollout.returns)).sum())
    if num_bad:
        raise FloatingPointError(
            f"iteration {iteration}: the reward of {num_bad} of {rollout.num_trajectories} "
            "trajectories is not a number: look at sim.reward and at the simulation; the last "
            "checkpoint is intact, resume goes on from there"
        )
    return rollout
