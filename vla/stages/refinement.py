"""Reinforcement learning of a robot policy: seeded starts, rollouts, and the shared core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from vla.rl.protocols import Observe, Policy, VectorEnvironment
from vla.rl.rollout import collect_rollout
from vla.rl.sampling import collect_informative, informative_groups
from vla.train.distributed import ALONE, Processes, own_share
from vla.train.pieces import Pieces
from vla.types import Decision, Observation, Rollout


@dataclass(frozen=True)
class Starts:
    """The training starts of a run: iteration `i` always draws the same seeds, however often the
    run was resumed.

    Of many processes that ask for as many, each gets its share of what one would draw for all of
    them.
    """

    first: int
    last: int
    seed: int
    processes: Processes = ALONE

    def draw(self, iteration: int, attempt: int, count: int) -> list[int]:
        rng = np.random.default_rng([self.seed, iteration, attempt])
        drawn = rng.integers(self.first, self.last + 1, size=count * self.processes.num_processes)
        return own_share(drawn, self.processes).tolist()


@dataclass(frozen=True)
class DynamicSampling:
    """Groups whose share of successes lies outside the bounds are replaced, by at most
    `max_refills` further rollouts.
    """

    max_refills: int
    min_success: float | None
    max_success: float | None


def make_collector(
    policy: Policy,
    environment: VectorEnvironment,
    observe: Observe,
    starts: Starts,
    num_starts: int,
    group_size: int,
    dynamic: DynamicSampling | None,
    on_decision: Callable[[int], None],
    before_step: Callable[[Observation, Decision, np.ndarray], None] | None = None,
    is_greedy: Callable[[int], bool] = lambda iteration: False,
) -> Callable[[int, Pieces], Rollout]:
    """How an iteration gets its rollout, in pieces that are kept; `is_greedy(iteration)` says
    whether by the likeliest decisions.
    """

    def collect(iteration: int, pieces: Pieces) -> Rollout:
        attempt = 0

        def sample(count: int) -> Rollout:
            nonlocal attempt
            seeds = starts.draw(iteration, attempt, count)
            attempt += 1

            def made() -> Rollout:
                rollout = collect_rollout(
                    policy,
                    environment,
                    seeds,
                    group_size,
                    observe,
                    version=iteration,
                    on_decision=on_decision,
                    before_step=before_step,
                    greedy=is_greedy(iteration),
                    keeper=pieces,
                )
                check_rewards(rollout, iteration)
                return rollout

            return pieces.take_rollout(made)

        if dynamic is None:
            return sample(num_starts)
        judge = partial(
            informative_groups, min_success=dynamic.min_success, max_success=dynamic.max_success
        )
        return collect_informative(sample, num_starts, dynamic.max_refills, informative=judge)

    return collect


def check_rewards(rollout: Rollout, iteration: int) -> None:
    """A simulator's reward is always a number: where it is none, something is broken. (A verifier
    may say NaN.)

    Raises:
        FloatingPointError: saying how many trajectories have such a reward.
    """
    bad = int((~torch.isfinite(rollout.returns)).sum())
    if bad:
        raise FloatingPointError(
            f"iteration {iteration}: the reward of {bad} of {rollout.num_trajectories} trajectories is not a number: "
            "look at sim.reward and at the simulation; the last checkpoint is intact, resume goes on from there"
        )
