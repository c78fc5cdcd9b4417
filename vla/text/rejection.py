"""Rejection sampling fine-tuning (RAFT, Dong 2023; Llama 2's rounds): sample, keep the best, learn
it, again."""

from __future__ import annotations

from functools import partial
from typing import Any

from vla.config.text import Rejection, TextConfig
from vla.data.chat import ChatFormat, observe_prompts
from vla.data.rows import RowReader
from vla.decoding.best_of import best_of
from vla.decoding.sampling import Sampling
from vla.evaluate.success import compare
from vla.files.write import write_json
from vla.policies.text import TextPolicy
from vla.rewards.compose import CORRECT, Rewards
from vla.rewards.pool import VerifierProcess
from vla.text.curriculum import Curriculum
from vla.text.environment import TextEnvironment
from vla.text.fit_stage import FitStage
from vla.text.fitting import FitSettings
from vla.text.judging import Judged, check_scorable, judge, pairs_of, rate_of, rows_at_once
from vla.text.language_model import context_of, load_language_parts
from vla.text.problem_sets import make_problem_sets, shortfalls
from vla.text.problems import Problem
from vla.text.report import finish
from vla.text.supervised import Example, fit_examples
from vla.text.topics import Said, say
from vla.train.pieces import Pieces, kept
from vla.train.run import Run


def run_rejection(config: TextConfig, run: Run) -> dict[str, Any]:
    """Rounds of sampling and learning on verified problems; greedy accuracy before and after on
    held-out ones."""
    settings = config.text
    assert isinstance(settings, Rejection)
    reader = RowReader(settings.on_bad_row)
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
    generation = settings.generation
    with run.timer("load"):
        texts = [problem.question for problem in sets.train]
        parts = load_language_parts(config.language_model, config.train, generation.system, texts)
        speaker = parts.policy(
            Sampling(**generation.sampling.model_dump()), generation.max_new_tokens
        )
        learner = parts.policy(Sampling(), generation.max_new_tokens)
    width = generation.max_prompt_tokens
    parts.check_context(*context_of(generation))
    sets = sets.fitting(parts.chat, width, "text.generation.max_prompt_tokens", reader)
    reader.tell(run.progress.say)
    asked = {
        "text.num_evaluation": (settings.num_evaluation, len(sets.evaluation)),
        "text.problems_per_round": (settings.problems_per_round, len(sets.train)),
    }
    for line in shortfalls(asked):
        run.progress.say(line)
    write_json(run.folder.path / "problems.json", sets.manifest())
    observe = partial(observe_prompts, width=width, pad_id=parts.pad_id, device=parts.device)
    curriculum = Curriculum([range(len(sets.train))], None, run.seed("problems"))
    with VerifierProcess(settings.verifier_timeout_seconds) as process:
        rewards = Rewards({CORRECT: 0.0, **settings.rewards}, process)
        rows = rows_at_once(width, generation.max_new_tokens)
        environment = TextEnvironment(sets.evaluation, parts.chat, rewards, parts.stop_ids, rows)

        def judged(pieces: Pieces) -> Judged:
            with run.timer("judge"):
                numbers = range(len(sets.evaluation))
                return judge(speaker, environment, observe, numbers, greedy=True, pieces=pieces)

        before: Judged = kept(run, "before", Judged, judged)
        check_scorable(before, process.failures)
        run.progress.say(f"before: {rate_of(before)} on held-out problems")
        for number in range(settings.rounds):
            problems = [
                sets.train[i] for i in curriculum.draw(number, 0, settings.problems_per_round)
            ]
            winners = sample_winners(run, settings, number, problems, speaker, parts.chat, rewards)
            if winners:
                fitting = FitSettings.of(settings.fit, len(winners))
                with FitStage(run, f"fit {number + 1}", fitting.num_steps) as stage:
                    fit_examples(learner, winners, fitting, run.seed("fit", number), stage)
        after: Judged = kept(run, "after", Judged, judged)
    results: dict[str, Any] = {"before": rate_of(before), "after": rate_of(after)}
    results["comparison"] = compare(before.success, after.success)
    run.progress.say(f"after:  {rate_of(after)} on the same problems; {results['comparison']}")
    results |= reader.results()
    title = "Rejection sampling: " + ", ".join(settings.families)
    return finish(run, title, results, pairs_of(before, after), parts)


def sample_winners(
    run: Run,
    settings: Rejection,
    number: int,
    problems: list[Problem],
    speaker: TextPolicy,
    chat: ChatFormat,
    rewards: Rewards,
) -> list[Example]:
    """The best answers of a round, kept in a stage of its own."""
    name = f"round {number + 1}"

    def made(pieces: Pieces) -> list[Example]:
        with run.stage(name):
            questions, asked = (
                [problem.question for problem in problems],
                {p.question: p.asked for p in problems},
            )
            width, count = settings.generation.max_prompt_tokens, settings.samples_per_prompt
            answers = say(
                speaker, chat, questions, count, width, asked=asked.__getitem__, pieces=pieces
            )
            return pick_winners(problems, answers, rewards, settings.min_reward)

    winners: list[Example] = kept(run, name, list[Example], made)
    run.progress.say(f"{name}: {len(winners)} of {len(problems)} problems have a winner")
    if run.load(name) is None:
        found = {"winners": float(len(winners)), "problems": float(len(problems))}
        run.log.write("round", number + 1, found)
        run.save(name, 1, found)
    return winners


def pick_winners(
    problems: list[Problem], answers: list[list[Said]], rewards: Rewards, min_reward: float
) -> list[Example]:
    """The best answer to every problem that has one good enough, of equals the shortest; cut
    answers never win."""
    samples = [
        problem.sample(said.text, said.finished, len(said.ids))
        for problem, completions in zip(problems, answers, strict=True)
        for said in completions
    ]
    totals = iter(rewards(samples).total.tolist())
    winners = []
    for completions in answers:
        scores = [next(totals) if said.finished else _skip(totals) for said in completions]
        best = best_of(scores, [len(said.ids) for said in completions], min_reward)
        if best is not None:
            winners.append(Example(completions[best].prompt_ids, completions[best].ids))
    return winners


def _skip(values: Any) -> float:
    next(values)
    return float("nan")
