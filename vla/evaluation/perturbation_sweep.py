"""Evaluation under perturbations: all conditions and decodings on the same starts; query time."""

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
from vla.rl.protocols import Observe, Policy, StepResult, VectorEnvironment
from vla.rl.rollout import collect_rollout
from vla.simulator import MakeSimulator, Simulator
from vla.training.progress import Progress
from vla.training.seed import derive_seed, seed_everything
from vla.types import Rollout, map_rows

NUM_TIMED_QUERIES = 10


@runtime_checkable
class StatefulPolicy(Protocol):
    """A policy that keeps actions between queries."""

    def forget(self) -> None:
        """Discard the kept actions."""


class InstructionRecorder:
    """A vector environment that records the instruction of every seed, for results by task.

    Results are tabulated by task, and a seed stands for a start.
    """

    def __init__(self, environment: VectorEnvironment):
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

    def step(self, actions: np.ndarray, ids: np.ndarray | None = None) -> StepResult:
        return self.environment.step(actions, ids)


def evaluate_conditions(
    policy: Policy,
    observe: Observe,
    sim: Simulation,
    make_simulator: MakeSimulator,
    starts: StartManifest,
    perturbations: Sequence[str],
    temperatures: Sequence[float | None],
    progress: Progress,
    on_rollout: Callable[[EvaluationResult, Rollout, Simulation], None] | None = None,
) -> list[EvaluationResult]:
    """Evaluate all starts under every perturbation, at every temperature (None: greedy).

    Random numbers depend on the perturbation's name alone, so outcomes of a checkpoint are
    reproducible. `on_rollout` gets each result with its rollout and its simulation settings.
    """
    seeds = starts.evaluation_seeds.tolist()
    results = []
    for perturbation in perturbations:
        perturbed = (
            sim
            if perturbation == NO_PERTURBATION
            else sim.model_copy(update={"perturbation": perturbation})
        )
        simulator = make_simulator(perturbed)
        condition = NOMINAL if perturbation == NO_PERTURBATION else perturbation
        for temperature in temperatures:
            seed_everything(derive_seed(0, f"evaluation of {perturbation}"))
            name = f"{condition}, {'greedy' if temperature is None else 'sampled'}"
            environment = InstructionRecorder(simulator.environment())
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
            tasks = [simulator.task_name(environment.instructions[seed]) for seed in seeds]
            result = rollout_result(rollout, temperature, tasks, condition=condition)
            progress.print_line(f"  {name}: {result}")
            if on_rollout is not None:
                on_rollout(result, rollout, perturbed)
            results.append(result)
    return results


def compare_with_nominal(results: Sequence[EvaluationResult]) -> list[ResultComparison]:
    """Compare every perturbed condition with the nominal one of the same decoding."""
    nominal = {result.decoding: result for result in results if result.condition == NOMINAL}
    return [
        compare_results(nominal[result.decoding], result)
        for result in results
        if result.condition != NOMINAL and result.decoding in nominal
    ]


@torch.no_grad()
def measure_query_seconds(
    policy: Policy, observe: Observe, simulator: Simulator, seed: int
) -> dict[str, float]:
    """Measure the seconds of one decision for one robot: median and slowest, after a warm-up."""
    observation = observe(simulator.environment().reset([seed], np.array([0])))
    row = map_rows(observation, lambda tensor: tensor[:1])
    policy.act(row, greedy=True)
    seconds = []
    for _ in range(NUM_TIMED_QUERIES):
        if isinstance(policy, StatefulPolicy):
            policy.forget()
        begin = time.perf_counter()
        policy.act(row, greedy=True)
        seconds.append(time.perf_counter() - begin)
    return {
        "median": float(np.median(seconds)),
        "slowest": max(seconds),
        "num_calls": NUM_TIMED_QUERIES,
    }
