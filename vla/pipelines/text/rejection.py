"""Rejection-sampling fine-tuning (RAFT, Dong 2023; Llama 2): sample, learn the best, repeat."""

from __future__ import annotations

from functools import partial

from vla.config.text import Rejection, TextConfig
from vla.data.chat import observe_prompts
from vla.data.rows import RowReader
from vla.evaluation.result import EvaluationResult, compare_results
from vla.policies.text import TextPolicy
from vla.rewards.compose import CORRECT, Rewards
from vla.rewards.verifier_process import VerifierProcess
from vla.sft.examples import example_settings
from vla.sft.stage import TrainingStage
from vla.text.curriculum import Curriculum
from vla.text.environment import TextEnvironment
from vla.text.problem_evaluation import (
    check_scorable,
    evaluate_problems,
    evaluation_batch_size,
    pair_answers,
)
from vla.text.rejection_sampling import sample_winners, set_up_rejection
from vla.text.sft_losses import Example, fit_examples
from vla.text.text_report import finish_run
from vla.training.resumable_work import ResumableWork, load_or_compute
from vla.training.run import Run


def run_rejection(config: TextConfig, run: Run) -> dict[str, object]:
    """Rounds of sampling and SFT on verified problems; greedy success on held-out problems before
    and after."""
    settings = config.text
    assert isinstance(settings, Rejection)
    reader = RowReader(settings.on_bad_row)
    setup = set_up_rejection(config, settings, run, reader)
    sets = setup.sets
    parts = setup.parts
    width = settings.generation.max_prompt_tokens
    observe = partial(observe_prompts, width=width, pad_id=parts.pad_id, device=parts.device)
    curriculum = Curriculum([range(len(sets.train))], None, run.seed("problems"))
    with VerifierProcess(settings.verifier_timeout_seconds) as process:
        rewards = Rewards({CORRECT: 0.0, **settings.rewards}, process)
        num_rows = evaluation_batch_size(width, settings.generation.max_new_tokens)
        environment = TextEnvironment(
            sets.evaluation, parts.chat, rewards, parts.stop_ids, num_rows
        )

        def evaluate(pieces: ResumableWork) -> EvaluationResult:
            with run.timer("evaluation"):
                numbers = range(len(sets.evaluation))
                return evaluate_problems(
                    setup.sampling_policy, environment, observe, numbers, pieces=pieces
                )

        before: EvaluationResult = load_or_compute(run, "before", EvaluationResult, evaluate)
        check_scorable(before, process.failures)
        run.progress.print_line(f"before: {before} on held-out problems")
        for number in range(settings.rounds):
            name = f"round {number + 1}"
            drawn = curriculum.draw(number, 0, settings.problems_per_round)
            problems = [sets.train[i] for i in drawn]
            winners = sample_winners(run, name, setup, problems, rewards)
            if run.load(name) is None:
                counts = {"winners": float(len(winners)), "problems": float(len(drawn))}
                run.log.write("round", number + 1, counts)
                run.save(name, 1, counts)
            if winners:
                train_round(run, settings, setup.training_policy, winners, number)
        after: EvaluationResult = load_or_compute(run, "after", EvaluationResult, evaluate)
    comparison = compare_results(before, after, noun="problems")
    run.progress.print_line(f"after:  {after} on the same problems; {comparison}")
    results: dict[str, object] = {
        "before": before.without_outputs(),
        "after": after.without_outputs(),
        "comparison": comparison,
        **reader.results(),
    }
    title = "Rejection sampling: " + ", ".join(settings.families)
    return finish_run(run, title, results, pair_answers(before, after, sets.evaluation), parts)


def train_round(
    run: Run, settings: Rejection, policy: TextPolicy, winners: list[Example], number: int
) -> None:
    """SFT on the winners of a round."""
    training = example_settings(settings.fit, len(winners), "text.fit")
    with TrainingStage(run, f"fit {number + 1}", training.num_steps) as stage:
        fit_examples(policy, winners, training, run.seed("fit", number), stage)
