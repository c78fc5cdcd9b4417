"""Evaluation of a policy: one episode from every start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vla.evaluation.result import EvaluationResult, merge_shares, success_result
from vla.rl.protocols import Observe, Policy, VectorEnvironment
from vla.rl.rollout import collect_rollout
from vla.training.distributed import SINGLE_PROCESS, Processes, shard_rows
from vla.training.resumable_work import ResumableWork
from vla.training.synchronization import propagate_errors
from vla.types import Rollout

RETURN = "return"
DECISIONS = "decisions"
CONTROL_STEPS = "control_steps"
"""Measures of an episode: return, number of decisions, and length in control steps."""


def evaluate_policy(
    policy: Policy,
    environment: VectorEnvironment,
    seeds: Sequence[int],
    observe: Observe,
    *,
    temperature: float | None,
    on_decision: Callable[[int], None] | None = None,
    processes: Processes = SINGLE_PROCESS,
    pieces: ResumableWork | None = None,
) -> EvaluationResult:
    """Run one episode from every seed; the successes.

    Decoding is greedy where `temperature` is None; otherwise `temperature` is the one that the
    policy samples at. Each process runs its share of the seeds, and all return the whole result.
    `pieces` saves finished shares for a resumed run.
    """

    def run_share() -> EvaluationResult:
        rollout = collect_rollout(
            policy,
            environment,
            shard_rows(seeds, processes),
            1,
            observe,
            greedy=temperature is None,
            on_decision=on_decision,
            saver=pieces,
        )
        return rollout_result(rollout, temperature)

    with propagate_errors(processes), processes.process_rng("evaluation"):
        own = (
            run_share()
            if pieces is None
            else pieces.next_piece(run_share, EvaluationResult.to_dict, EvaluationResult.from_dict)
        )
    return merge_shares(processes.gather(own))


def rollout_result(
    rollout: Rollout, temperature: float | None, groups: Sequence[str] = (), **fields: str
) -> EvaluationResult:
    """The successes of a rollout with one trajectory per start.

    `groups` are the tasks of the starts, by default those among the environment's measures.
    """
    assert rollout.success is not None
    decisions = rollout.trajectory.bincount(minlength=rollout.num_trajectories)
    measured = {name: values.numpy() for name, values in rollout.episodes.items()}
    seeds = measured.pop("seed")
    columns = {RETURN: rollout.returns.numpy(), DECISIONS: decisions.numpy(), **measured}
    return success_result(
        [int(seed) for seed in seeds],
        rollout.success.numpy() > 0.5,
        temperature,
        groups=tuple(groups) or episode_tasks(measured),
        measures={name: tuple(map(float, values)) for name, values in columns.items()},
        **fields,
    )


def episode_tasks(measures: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The task of every episode in a mixture of tasks; empty for a single task.

    A mixture measures "TASK/success", which is NaN in episodes of other tasks.
    """
    tasks: dict[int, str] = {}
    for name, values in measures.items():
        task, _, term = name.rpartition("/")
        if task and term == "success":
            tasks |= dict.fromkeys(np.flatnonzero(~np.isnan(values)).tolist(), task)
    count = len(next(iter(measures.values()), ()))
    return tuple(tasks[row] for row in range(count)) if tasks and len(tasks) == count else ()
