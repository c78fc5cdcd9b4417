"""The evaluation of a policy under perturbations: every condition and decoding on the same starts,
and the time of one query."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from vla.config.simulation import Simulation
from vla.evaluation.checkpoint_settings import NO_PERTURBATION
from vla.evaluation.evaluate import rollout_result
from vla.evaluation.result import NOMINAL, EvaluationResult, ResultComparison, compare_results
from vla.evaluation.starts import StartManifest
from vla.rl.protocols import Observe, Policy
from vla.rl.rollout import collect_rollout
from vla.simulator import MakeSimulator, Simulator
from vla.training.progress import Progress
from vla.training.seed import derive_seed, seed_everything
from vla.types import Rollout, map_rows

NUM_TIMED_QUERIES = 10


@runtime_checkable
class StatefulPolicy(Protocol):
    """A policy that keeps actions for later queries."""

    def forget(self) -> None:
        """Drop the kept actions."""


class InstructionRecorder:
    """A vector environment that records the instruction of every seed, for results by task."""

    def __init__(self, environment: Any):
        self.environment = environment
        self.instructions: dict[int, str] = {}

    @property
    def num_envs(self) -> int:
        return self.environment.num_envs

    def reset(self, seeds: Sequence[int], ids: np.ndarray | None = None) -> Any:
        observation = self.environment.reset(seeds, ids)
        self.instructions |= {
            int(seed): text for seed, text in zip(seeds, observation.instruction, strict=True)
        }
        return observation

    def step(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Any:
        return self.environment.step(actions, ids)


def evaluate_conditions(
    policy: Policy,
    observe: Observe,
    sim: Simulation,
    make_world: MakeSimulator,
    starts: StartManifest,
    perturbations: Sequence[str],
    temperatures: Sequence[float | None],
    progress: Progress,
    on_rollout: Callable[[EvaluationResult, Rollout, Simulation], None] | None = None,
) -> list[EvaluationResult]:
    """The results on all starts under every perturbation, at every temperature (None: greedy).

    The draws of a start depend on the perturbation's name alone, so one checkpoint always gives the
    same outcomes.
    """
    seeds = starts.evaluation_seeds.tolist()
    results = []
    for perturbation in perturbations:
        perturbed = (
            sim
            if perturbation == NO_PERTURBATION
            else sim.model_copy(update={"perturbation": perturbation})
        )
        world = make_world(perturbed)
        condition = NOMINAL if perturbation == NO_PERTURBATION else perturbation
        for temperature in temperatures:
            seed_everything(derive_seed(0, f"evaluation of {perturbation}"))
            name = f"{condition}, {'greedy' if temperature is None else 'sampled'}"
            environment = InstructionRecorder(world.environment())
            with progress.bar(name, len(seeds)) as bar:
                rollout = collect_rollout(
                    policy,
                    environment,
                    seeds,
                    1,
                    observe,
                    greedy=temperature is None,
                    on_decision=bar.advance_to,
                )
            tasks = [world.task_name(environment.instructions[seed]) for seed in seeds]
            result = rollout_result(rollout, temperature, tasks, condition=condition)
            progress.print_line(f"  {name}: {result}")
            if on_rollout is not None:
                on_rollout(result, rollout, perturbed)
            results.append(result)
    return results


def compare_with_nominal(results: Sequence[EvaluationResult]) -> list[ResultComparison]:
    """Every perturbed condition against the nominal one of the same decoding."""
    nominal = {result.decoding: result for result in results if result.condition == NOMINAL}
    return [
        compare_results(nominal[result.decoding], result)
        for result in results
        if result.condition != NOMINAL and result.decoding in nominal
    ]


@torch.no_grad()
def measure_query_seconds(
    policy: Policy, observe: Observe, world: Simulator, seed: int
) -> dict[str, float]:
    """Seconds of one decision for one robot, over some queries after a first: median and
    slowest."""
    observation = observe(world.environment().reset([seed], np.array([0])))
    row = map_rows(observation, lambda tensor: tensor[:1])
    policy.act(row, greedy=True)
    taken = []
    for _ in range(NUM_TIMED_QUERIES):
        if isinstance(policy, StatefulPolicy):
            policy.forget()
        begin = time.perf_counter()
        policy.act(row, greedy=True)
        taken.append(time.perf_counter() - begin)
    return {
        "median": float(np.median(taken)),
        "slowest": max(taken),
        "num_calls": NUM_TIMED_QUERIES,
    }
