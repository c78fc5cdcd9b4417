"""Evaluations of an RLVR run on held-out problems, and its results."""

from __future__ import annotations

from collections import Counter

from vla.evaluation.result import EvaluationResult, compare_results
from vla.rewards.verifier_process import VerifierProcess
from vla.statistics import SuccessRate
from vla.text.problem_evaluation import (
    PART,
    TOKENS,
    count_unscorable,
    evaluate_problems,
    evaluate_samples,
)
from vla.text.rlvr_setup import RlvrSetup
from vla.training.distributed import Processes
from vla.training.resumable_work import ResumableWork, load_or_compute
from vla.training.run import Run


def evaluate_validation(run: Run, setup: RlvrSetup) -> SuccessRate:
    """Greedy success on the validation problems."""
    numbers = range(len(setup.sets.validation))
    result = evaluate_problems(
        setup.policy, setup.held_out, setup.observe, numbers, processes=run.processes
    )
    return result.success_rate


def load_or_evaluate(
    run: Run, setup: RlvrSetup, name: str, of: int | None = None
) -> EvaluationResult:
    """Evaluate greedy answers to the evaluation problems, or load the result stored under `name`.

    `of` is the number of RL iterations before the evaluation.
    """

    def evaluate(pieces: ResumableWork) -> EvaluationResult:
        with run.stage("evaluation", seed_name="judge"):
            return evaluate_problems(
                setup.policy,
                setup.held_out,
                setup.observe,
                setup.evaluation_numbers,
                processes=run.processes,
                pieces=pieces,
            )

    result: EvaluationResult = load_or_compute(run, name, EvaluationResult, evaluate, of)
    return result


def evaluate_sampled(run: Run, setup: RlvrSetup, of: int) -> dict[str, EvaluationResult]:
    """Results of `text.num_samples` sampled answers to every evaluation problem; stored."""
    settings = setup.settings

    def sample(pieces: ResumableWork) -> dict[str, EvaluationResult]:
        with run.stage("evaluation", seed_name="judge"):
            if settings.num_samples == 0:
                return {}
            return evaluate_samples(
                setup.policy,
                setup.held_out,
                setup.observe,
                setup.evaluation_numbers,
                settings.num_samples,
                settings.sampling.temperature,
                run.processes,
                pieces,
            )

    results: dict[str, EvaluationResult] = load_or_compute(
        run, "sampled", dict[str, EvaluationResult], sample, of
    )
    return results


def verifier_failures(process: VerifierProcess, processes: Processes) -> dict[str, int]:
    """Number of verifier failures in all processes, by reason."""
    counts = (Counter(failures) for failures in processes.gather(process.failures))
    return dict(sum(counts, Counter()))


def rlvr_results(
    before: EvaluationResult, after: EvaluationResult, setup: RlvrSetup, failures: dict[str, int]
) -> dict[str, object]:
    """Results of the run, by family where there are several."""
    results: dict[str, object] = {
        "before": before.without_outputs(),
        "after": after.without_outputs(),
        "comparison": compare_results(before, after, noun="problems"),
        "mean_tokens": {
            "before": before.mean_measure(TOKENS),
            "after": after.mean_measure(TOKENS),
        },
        "unscorable": {
            "before": count_unscorable(before),
            "after": count_unscorable(after),
            "reasons": failures,
        },
    }
    parts = [name for name in before.measures if name.startswith(PART)]
    for name in parts if len(parts) > 1 else ():
        results[f"reward {name.removeprefix(PART)}"] = {
            "before": before.mean_measure(name),
            "after": after.mean_measure(name),
        }
    families = setup.sets.families
    if len(families) > 1:
        groups_before = before.without_outputs().by_group()
        groups_after = after.without_outputs().by_group()
        for family in families:
            if family in groups_before:
                results[f"family {family}"] = {
                    "before": groups_before[family],
                    "after": groups_after[family],
                }
    return results
