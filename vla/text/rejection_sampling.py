"""Rejection sampling: the setup of a run, and the best of several completions of a problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vla.config.text import Rejection, TextConfig
from vla.data.rows import RowReader
from vla.files.writing import write_json
from vla.generation.best_of import best_of
from vla.generation.sampling import Sampling
from vla.policies.text import TextPolicy
from vla.rewards.compose import CORRECT, Rewards
from vla.rewards.verifier_process import VerifierProcess
from vla.text.language_model import LanguageParts, load_language_parts, required_context
from vla.text.problem import Problem
from vla.text.problem_sets import ProblemSets, describe_shortfalls, make_problem_sets
from vla.text.prompts import Completion, sample_completions
from vla.text.sft_losses import Example
from vla.training.resumable_work import ResumableWork, load_or_compute
from vla.training.run import Run


@dataclass(frozen=True)
class RejectionSetup:
    """The parts of a run. Both policies share one model; `training_policy` has temperature 1."""

    settings: Rejection
    sets: ProblemSets
    parts: LanguageParts
    sampling_policy: TextPolicy
    training_policy: TextPolicy


def set_up_rejection(
    config: TextConfig, settings: Rejection, run: Run, reader: RowReader
) -> RejectionSetup:
    """Read the problems and load the model; write problems.json.

    Raises:
        ValueError: a verifier cannot be imported, the problems do not fit the settings, or the
            model has too few positions.
    """
    generation = settings.generation
    sets = load_problem_sets(settings, reader)
    with run.timer("load"):
        questions = [problem.question for problem in sets.train]
        parts = load_language_parts(
            config.language_model, config.train, generation.system, questions
        )
        sampling = Sampling(**generation.sampling.model_dump())
        sampling_policy = parts.policy(sampling, generation.max_new_tokens)
        training_policy = parts.policy(Sampling(), generation.max_new_tokens)
    parts.check_context(*required_context(generation))
    limit = generation.max_prompt_tokens
    sets = sets.keep_usable(parts.chat, limit, "text.generation.max_prompt_tokens", reader)
    reader.report_lines(run.progress.print_line)
    counts = {
        "text.num_evaluation": (settings.num_evaluation, len(sets.evaluation)),
        "text.problems_per_round": (settings.problems_per_round, len(sets.train)),
    }
    for line in describe_shortfalls(counts):
        run.progress.print_line(line)
    write_json(run.folder.path / "problems.json", sets.manifest())
    return RejectionSetup(settings, sets, parts, sampling_policy, training_policy)


def load_problem_sets(settings: Rejection, reader: RowReader) -> ProblemSets:
    """The problems of the settings; their verifiers are checked before a model is loaded."""
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


def sample_winners(
    run: Run, name: str, setup: RejectionSetup, problems: Sequence[Problem], rewards: Rewards
) -> list[Example]:
    """The best of `text.samples_per_prompt` completions of each problem; stored under `name`.

    Problems without a completion of at least `text.min_reward` have no winner.
    """
    settings = setup.settings
    messages = {problem.question: problem.prompt_messages for problem in problems}

    def sample(pieces: ResumableWork) -> list[Example]:
        with run.stage(name):
            completions = sample_completions(
                setup.sampling_policy,
                setup.parts.chat,
                [problem.question for problem in problems],
                settings.samples_per_prompt,
                settings.generation.max_prompt_tokens,
                messages_for=messages.__getitem__,
                pieces=pieces,
            )
            return pick_winners(problems, completions, rewards, settings.min_reward)

    winners: list[Example] = load_or_compute(run, name, list[Example], sample)
    run.progress.print_line(f"{name}: {len(winners)} of {len(problems)} problems have a winner")
    return winners


def pick_winners(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[Completion]],
    rewards: Rewards,
    min_reward: float,
) -> list[Example]:
    """The completion with the highest reward of every problem, of equal rewards the shortest.

    Truncated completions never win. A problem whose best reward is below `min_reward` has no
    winner.
    """
    samples = [
        problem.sample(completion.text, completion.finished, len(completion.ids))
        for problem, group in zip(problems, completions, strict=True)
        for completion in group
    ]
    totals = iter(rewards(samples).total.tolist())
    winners = []
    for group in completions:
        scores = []
        for completion in group:
            reward = next(totals)
            scores.append(reward if completion.finished else float("nan"))
        best = best_of(scores, [len(completion.ids) for completion in group], min_reward)
        if best is not None:
            winners.append(Example(group[best].prompt_ids, group[best].ids))
    return winners
