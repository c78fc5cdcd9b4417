"""A checkpoint judged on held-out starts: every condition and decoding on the same seeds, with what
it cost to ask."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from vla.config.simulation import Simulation
from vla.evaluate.settings import UNCHANGED
from vla.evaluate.starts import StartManifest
from vla.evaluate.summary import NOMINAL, Judged
from vla.rl.protocols import Observe, Policy
from vla.rl.rollout import collect_rollout
from vla.stages.evaluation import episodes_of
from vla.stages.world import World
from vla.train.progress import Progress
from vla.train.seed import derive_seed, seed_everything
from vla.types import Rollout, map_rows

STEPS = "control_steps"
LATENCY_CALLS = 10


@runtime_checkable
class Forgetful(Protocol):
    """A policy that keeps actions for later, until it is told to forget them."""

    def forget(self) -> None: ...


class Instructed:
    """A vector environment that remembers what each start asked for; seeds stand for starts."""

    def __init__(self, environment: Any):
        self.environment = environment
        self.instruction: dict[int, str] = {}

    @property
    def num_envs(self) -> int:
        return self.environment.num_envs

    def reset(self, seeds: Sequence[int], ids: np.ndarray | None = None) -> Any:
        seen = self.environment.reset(seeds, ids)
        self.instruction |= {
            int(seed): text for seed, text in zip(seeds, seen.instruction, strict=True)
        }
        return seen

    def step(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Any:
        return self.environment.step(actions, ids)


def judge(
    policy: Policy,
    observe: Observe,
    sim: Simulation,
    make_world: Callable[[Simulation], World],
    starts: StartManifest,
    perturbations: Sequence[str],
    temperatures: Sequence[float | None],
    progress: Progress,
    on_rollout: Callable[[Judged, Rollout, Simulation], None] = lambda judged, rollout, sim: None,
) -> list[Judged]:
    """The policy on all starts under every perturbation, greedily (temperature None) and sampled at
    a temperature.

    A start's draws depend on nothing but the perturbation's name, so the same checkpoint gives the
    same outcomes.
    """
    seeds = starts.evaluation_seeds.tolist()
    found = []
    for perturbation in perturbations:
        changed = (
            sim
            if perturbation == UNCHANGED
            else sim.model_copy(update={"perturbation": perturbation})
        )
        world = make_world(changed)
        condition = NOMINAL if perturbation == UNCHANGED else perturbation
        for temperature in temperatures:
            seed_everything(derive_seed(0, f"evaluation of {perturbation}"))
            name = f"{condition}, {'greedy' if temperature is None else 'sampled'}"
            with counted(progress, name, len(seeds)) as advance:
                environment = Instructed(world.environment())
                rollout = collect_rollout(
                    policy,
                    environment,
                    seeds,
                    1,
                    observe,
                    greedy=temperature is None,
                    on_decision=advance,
                )
            tasks = tuple(world.task_of(environment.instruction[seed]) for seed in seeds)
            found.append(judged_from(condition, temperature, rollout, tasks))
            progress.say(f"  {name}: {found[-1].rate}")
            on_rollout(found[-1], rollout, changed)
    return found


@contextmanager
def counted(progress: Progress, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A stage that hears how many episodes have ended."""
    ended = 0
    with progress.stage(name, total) as bar:

        def advance(count: int) -> None:
            nonlocal ended
            if count > ended:
                bar.advance(count - ended)
                ended = count

        yield advance


def judged_from(
    condition: str, temperature: float | None, rollout: Rollout, tasks: tuple[str, ...]
) -> Judged:
    """The numbers of a rollout of one trajectory a start."""
    episodes = episodes_of(rollout, temperature is None)
    stages = {name: values for name, values in episodes.measures.items() if name != STEPS}
    steps = episodes.measures[STEPS]
    return Judged(condition, temperature, episodes.success, episodes.returns, steps, stages, tasks)


@torch.no_grad()
def seconds_per_query(
    policy: Policy, observe: Observe, world: World, seed: int
) -> dict[str, float]:
    """How long one decision for one robot takes, over some calls after a first: median, and the
    slowest."""
    observation = observe(world.environment().reset([seed], np.array([0])))
    row = map_rows(observation, lambda tensor: tensor[:1])
    policy.act(row, greedy=True)
    taken = []
    for _ in range(LATENCY_CALLS):
        if isinstance(policy, Forgetful):
            policy.forget()
        begin = time.perf_counter()
        policy.act(row, greedy=True)
        taken.append(time.perf_counter() - begin)
    return {"median": float(np.median(taken)), "slowest": max(taken), "num_calls": LATENCY_CALLS}
