"""Rejection sampling fine-tuning (RAFT, Dong 2023; Llama 2's rounds): sample, keep the best, learn
it, again."""

from __future__ import annotations

from functools import partial
from typing import Any

from vla.config.text import Rejection, TextConfig
from vla.data.chat import observe_prompts
from vla.data.rows import RowReader
from vla.evaluation.result import EvaluationResult, compare_results
from vla.files.writing import write_json
from vla.generation.sampling import Sampling
from vla.policies.text import TextPolicy
from vla.rewards.compose import CORRECT, Rewards
from vla.rewards.verifier_process import VerifierProcess
from vla.sft.examples import example_settings
from vla.sft.stage import TrainingStage
from vla.text.curriculum import Curriculum
from vla.text.environment import TextEnvironment
from vla.text.language_model import load_language_parts, required_context
from vla.text.problem_evaluation import (
    check_scorable,
    evaluate_problems,
    evaluation_batch_size,
    pair_answers,
)
from vla.text.problem_sets import ProblemSets, describe_shortfalls, make_problem_sets
from vla.text.rejection_sampling import sample_winners
from vla.text.sft_losses import Example, fit_examples
from vla.text.text_report import finish_run
from vla.training.resumable_work import ResumableWork, load_or_compute
from vla.training.run import Run


def run_rejection(config: TextConfig, run: Run) -> dict[str, Any]:
    """Rounds of sampling and learning on verified problems; greedy accuracy before and after on
    held-out ones."""
    settings = config.text
    assert isinstance(settings, Rejection)
    generation = settings.generation
    width = generation.max_prompt_tokens
    reader = RowReader(settings.on_bad_row)
    sets = load_problems(settings, reader)
    with run.timer("load"):
        questions = [problem.question for problem in sets.train]
        parts = load_language_parts(
            config.language_model, config.train, generation.system, questions
        )
        sampling = Sampling(**generation.sampling.model_dump())
        speaker = parts.policy(sampling, generation.max_new_tokens)
        learner = parts.policy(Sampling(), generation.max_new_tokens)
    parts.check_context(*required_context(generation))
    sets = sets.keep_usable(parts.chat, width, "text.generation.max_prompt_tokens", reader)
    reader.report_lines(run.progress.print_line)
    counts = {
        "text.num_evaluation": (settings.num_evaluation, len(sets.evaluation)),
        "text.problems_per_round": (settings.problems_per_round, len(sets.train)),
    }
    for line in describe_shortfalls(counts):
        run.progress.print_line(line)
    write_json(run.folder.path / "problems.json", sets.manifest())

    observe = partial(observe_prompts, width=width, pad_id=parts.pad_id, device=parts.device)
    curriculum = Curriculum([range(len(sets.train))], None, run.seed("problems"))
    with VerifierProcess(settings.verifier_timeout_seconds) as process:
        rewards = Rewards({CORRECT: 0.0, **settings.rewards}, process)
        rows = evaluation_batch_size(width, generation.max_new_tokens)
        environment = TextEnvironment(sets.evaluation, parts.chat, rewards, parts.stop_ids, rows)

        def evaluate(pieces: ResumableWork) -> EvaluationResult:
            with run.timer("evaluation"):
                numbers = range(len(sets.evaluation))
                return evaluate_problems(speaker, environment, observe, numbers, pieces=pieces)

        before: EvaluationResult = load_or_compute(run, "before", EvaluationResult, evaluate)
        check_scorable(before, process.failures)
        run.progress.print_line(f"before: {before} on held-out problems")
        for number in range(settings.rounds):
            name = f"round {number + 1}"
            drawn = curriculum.draw(number, 0, settings.problems_per_round)
            winners = sample_winners(
                run,
                name,
                speaker,
                parts.chat,
                [sets.train[i] for i in drawn],
                rewards,
                num_samples=settings.samples_per_prompt,
                max_prompt_tokens=width,
                min_reward=settings.min_reward,
            )
            if run.load(name) is None:
                found = {"winners": float(len(winners)), "problems": float(len(drawn))}
                run.log.write("round", number + 1, found)
                run.save(name, 1, found)
            if winners:
                train_round(run, settings, learner, winners, number)
        after: EvaluationResult = load_or_compute(run, "after", EvaluationResult, evaluate)
    comparison = compare_results(before, after, noun="problems")
    run.progress.print_line(f"after:  {after} on the same problems; {comparison}")
    results: dict[str, Any] = {
        "before": before.without_outputs(),
        "after": after.without_outputs(),
        "comparison": comparison,
        **reader.results(),
    }
    title = "Rejection sampling: " + ", ".join(settings.families)
    return finish_run(run, title, results, pair_answers(before, after, sets.evaluation), parts)


def load_problems(settings: Rejection, reader: RowReader) -> ProblemSets:
    """The problems of the settings, their verifiers checked before a model is loaded."""
    sets = make_problem_sets(
        settings.families,
        settings.num_problems,
        settings.holdout_fraction,
        0,
        settings.num_evaluation,
        reader,
    )
    with VerifierProcess(settings.verifier_timeout_seconds) as process:
        sets.check_verifiers(Rewards({CORRECT: 0.0, **settings.rewards}, process))
    return sets


def train_round(
    run: Run, settings: Rejection, policy: TextPolicy, winners: list[Example], number: int
) -> None:
    """SFT on the winners of a round."""
    training = example_settings(settings.fit, len(winners), "text.fit")
    with TrainingStage(run, f"fit {number + 1}", training.num_steps) as stage:
        fit_examples(policy, winners, training, run.seed("fit", number), stage)
