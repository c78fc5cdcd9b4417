"""Rejection sampling fine-tuning (RAFT, Dong 2023; Llama 2's rounds): sample, keep the best, learn it, again."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch

from vla.config.text import Rejection, TextConfig
from vla.data.chat import observe_prompts
from vla.data.rows import RowReader
from vla.decoding.best_of import best_of
from vla.decoding.sampling import Sampling
from vla.evaluate.success import compare
from vla.files.write import write_atomically
from vla.rewards.compose import CORRECT, Rewards
from vla.rewards.pool import VerifierProcess
from vla.text.curriculum import Curriculum
from vla.text.environment import TextEnvironment
from vla.text.fitting import FitSettings
from vla.text.judging import judge, pairs_of, rate_of, rows_at_once
from vla.text.language_model import context_of, load_language_parts, save_language_model
from vla.text.problem_sets import make_problem_sets
from vla.text.problems import Problem
from vla.text.report import spent, write_report
from vla.text.supervised import Example, fit_examples
from vla.text.topics import Said, say
from vla.train.metrics import MetricsLog
from vla.train.progress import Progress
from vla.train.run_folder import RunFolder
from vla.train.seed import derive_seed
from vla.train.timing import Timer


def run_rejection(config: TextConfig, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Rounds of sampling and learning on verified problems; greedy accuracy before and after on held-out ones."""
    settings = config.text
    assert isinstance(settings, Rejection)
    if config.resume:
        raise ValueError(f"resume ({config.resume}): text=rejection cannot be resumed, start it anew")
    reader = RowReader(settings.on_bad_row)
    sets = make_problem_sets(
        settings.families, settings.num_problems, settings.holdout_fraction, 0, settings.num_evaluation, reader
    )
    for line in reader.lines():
        progress.say(line)
    write_atomically(folder.path / "problems.json", json.dumps(sets.manifest(), indent=1) + "\n")
    timer, generation, seed = Timer(), settings.generation, config.train.seed
    log = MetricsLog(folder.path, 0, config.train.tensorboard, config.train.trackers)
    with timer("load"):
        texts = [problem.question for problem in sets.train]
        parts = load_language_parts(config.language_model, config.train, generation.system, texts)
        speaker = parts.policy(Sampling(**generation.sampling.model_dump()), generation.max_new_tokens)
        learner = parts.policy(Sampling(), generation.max_new_tokens)
    width = generation.max_prompt_tokens
    parts.check_context(*context_of(generation))
    observe = partial(observe_prompts, width=width, pad_id=parts.pad_id, device=parts.device)
    curriculum = Curriculum([range(len(sets.train))], None, derive_seed(seed, "problems"))
    with VerifierProcess(settings.verifier_timeout_seconds) as process:
        rewards = Rewards({CORRECT: 0.0, **settings.rewards}, process)
        rows = rows_at_once(width, generation.max_new_tokens)
        environment = TextEnvironment(sets.evaluation, parts.chat, rewards, parts.stop_ids, rows)
        numbers = range(len(sets.evaluation))
        with timer("judge"):
            before = judge(speaker, environment, observe, numbers, greedy=True)
        progress.say(f"before: {rate_of(before)} on held-out problems")
        for number in range(settings.rounds):
            problems = [sets.train[i] for i in curriculum.draw(number, 0, settings.problems_per_round)]
            torch.manual_seed(derive_seed(seed, "samples", number))
            with timer("rollout"):
                questions = [problem.question for problem in problems]
                answers = say(speaker, parts.chat, questions, settings.samples_per_prompt, width)
            winners = pick_winners(problems, answers, rewards, settings.min_reward)
            found = {"winners": float(len(winners)), "problems": float(len(problems))}
            progress.say(f"round {number + 1}: {len(winners)} of {len(problems)} problems have a winner")
            log.write("round", number + 1, found)
            if winners:
                with timer("fit"), progress.stage(f"fit {number + 1}", settings.fit.num_steps) as stage:
                    fit_examples(
                        learner, winners, FitSettings(**settings.fit.model_dump()), derive_seed(seed, "fit", number),
                        lambda _, loss: stage.advance(loss=loss),
                    )  # fmt: skip
        with timer("judge"):
            after = judge(speaker, environment, observe, numbers, greedy=True)
    results: dict[str, Any] = {"before": rate_of(before), "after": rate_of(after)}
    results["comparison"] = compare(before.success, after.success)
    progress.say(f"after:  {rate_of(after)} on the same problems; {results['comparison']}")
    results |= {**reader.results(), **spent(timer)}
    folder.write_results(results)
    log.close()
    write_report(folder, "Rejection sampling: " + ", ".join(settings.families), results, pairs_of(before, after))
    save_language_model(parts, folder.path / "model")
    return results


def pick_winners(
    problems: list[Problem], answers: list[list[Said]], rewards: Rewards, min_reward: float
) -> list[Example]:
    """The best answer to every problem that has one good enough, of equals the shortest; cut answers never win."""
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
