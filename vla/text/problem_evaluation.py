"""Evaluation of a text policy on verified problems: greedy answers and several sampled ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from vla.evaluation.evaluate import RETURN
from vla.evaluation.result import EvaluationResult, merge_shares, success_result
from vla.generation.best_of import majority_vote
from vla.rewards.verifiers.external_verifiers import parse_final_answer
from vla.rl.protocols import Observe, Policy
from vla.rl.rollout import collect_rollout
from vla.text.environment import TextEnvironment, TextEpisode
from vla.text.problem import Problem
from vla.text.text_report import AnswerPair
from vla.training.distributed import SINGLE_PROCESS, Processes, shard_rows
from vla.training.resumable_work import ResumableWork
from vla.training.synchronization import propagate_errors

EVALUATION_TOKENS = 2**15
"""Most tokens of prompts and answers in a batch of an evaluation."""


def evaluation_batch_size(max_prompt_tokens: int, max_new_tokens: int) -> int:
    """Problems in a batch of an evaluation. Large batches use a processor better."""
    return max(1, EVALUATION_TOKENS // (max_prompt_tokens + max_new_tokens))


ROLLOUT_TOKENS = 2**18
"""Most tokens of prompts and completions in a batch of a rollout, which is saved after each."""


def rollout_batch_size(
    num_rows: int, group_size: int, max_prompt_tokens: int, max_new_tokens: int
) -> int:
    """Completions in a batch of a rollout: whole groups of at most `ROLLOUT_TOKENS` tokens."""
    groups = ROLLOUT_TOKENS // ((max_prompt_tokens + max_new_tokens) * group_size)
    return min(num_rows, max(1, groups) * group_size)


TOKENS = "tokens"
PART = "reward/"
"""Names of the measures of an answer: its length, and the prefix of the parts of its reward."""


def evaluate_problems(
    policy: Policy,
    environment: TextEnvironment,
    observe: Observe,
    numbers: Sequence[int],
    *,
    processes: Processes = SINGLE_PROCESS,
    pieces: ResumableWork | None = None,
) -> EvaluationResult:
    """Success of one greedy answer to each problem in `numbers`, by family.

    Each process evaluates its shard of the problems, and all return the whole result. A finished
    shard is saved as the first of `pieces`.
    """
    environment.take_episodes()
    if pieces is not None:
        pieces.parts["environment"] = environment
    share = shard_rows(numbers, processes)
    result = success_result((), (), None)

    def run_share() -> EvaluationResult:
        rollout = collect_rollout(policy, environment, share, 1, observe, greedy=True, saver=pieces)
        assert rollout.success is not None
        episodes = environment.take_episodes()
        measures = {
            RETURN: tuple(rollout.returns.tolist()),
            TOKENS: tuple(float(episode.sample.num_tokens) for episode in episodes),
        }
        for name in episodes[0].parts:
            measures[PART + name] = tuple(float(episode.parts[name]) for episode in episodes)
        return success_result(
            [episode.problem.question for episode in episodes],
            (rollout.success > 0.5).tolist(),
            None,
            groups=tuple(episode.problem.family for episode in episodes),
            outputs=tuple(episode.transcript for episode in episodes),
            measures=measures,
        )

    # the name "judge" is part of the seed, so a better one would change results
    with propagate_errors(processes), processes.process_rng("judge"):
        if len(share):
            result = (
                run_share()
                if pieces is None
                else pieces.next_piece(
                    run_share, EvaluationResult.to_dict, EvaluationResult.from_dict
                )
            )
    return merge_shares(processes.gather(result))


def count_unscorable(result: EvaluationResult) -> int:
    """Number of problems on which the verifier failed; they count as not solved."""
    return int(np.isnan(result.measure(RETURN)).sum())


def check_scorable(result: EvaluationResult, failures: Mapping[str, int]) -> None:
    """Raise ValueError with the reasons where the verifier failed on every answer."""
    if count_unscorable(result) == result.n:
        reasons = "; ".join(
            f"{reason} ({count} times)" for reason, count in Counter(failures).most_common(3)
        )
        raise ValueError(
            f"not one of {result.n} answers could be scored, so nothing could be learned: mend "
            f"text.rewards or the verifier that the problems name. {reasons}"
        )


def evaluate_samples(
    policy: Policy,
    environment: TextEnvironment,
    observe: Observe,
    numbers: Sequence[int],
    count: int,
    temperature: float,
    processes: Processes = SINGLE_PROCESS,
    pieces: ResumableWork | None = None,
) -> dict[str, EvaluationResult]:
    """Success of `count` sampled answers to each problem.

    The results are those of every answer, of any of them (pass@k, Chen 2021), and of the most
    frequent one (self-consistency, Wang 2022).
    """
    environment.take_episodes()
    if pieces is not None:
        pieces.parts["environment"] = environment
    share = shard_rows(numbers, processes)
    sampled: list[TextEpisode] = []

    def run_share() -> list[TextEpisode]:
        collect_rollout(policy, environment, share, count, observe, saver=pieces)
        return environment.take_episodes()

    with propagate_errors(processes), processes.process_rng("samples"):
        if len(share):
            sampled = (
                run_share() if pieces is None else pieces.next_value(list[TextEpisode], run_share)
            )
    by_question: dict[str, list[TextEpisode]] = {}
    for episode in chain(*processes.gather(sampled)):
        by_question.setdefault(episode.problem.question, []).append(episode)
    repeated: list[str] = []
    successes: list[bool] = []
    passed: list[bool] = []
    elected: list[bool] = []
    for question, episodes in by_question.items():
        answers = [
            parse_final_answer(episode.sample.completion, episode.problem.answer)
            for episode in episodes
        ]
        repeated += [question] * len(episodes)
        successes += [episode.success for episode in episodes]
        passed.append(any(episode.success for episode in episodes))
        winner = majority_vote(answers)
        elected.append(winner is not None and episodes[answers.index(winner)].success)
    questions = list(by_question)
    return {
        "sampled": success_result(repeated, successes, temperature),
        f"any of {count}": success_result(questions, passed, temperature),
        f"majority of {count}": success_result(questions, elected, temperature),
    }


def pair_answers(
    before: EvaluationResult, after: EvaluationResult, problems: Sequence[Problem]
) -> list[AnswerPair]:
    """The answers to the same problems, those whose success changed first."""
    answers = {problem.question: problem.answer for problem in problems}
    earlier = {question: row for row, question in enumerate(before.ids)}
    pairs = [
        AnswerPair(
            str(question),
            f"answer: {answers[str(question)]}",
            before.outputs[earlier[question]],
            after.outputs[row],
            bool(before.success[earlier[question]]),
            bool(after.success[row]),
        )
        for row, question in enumerate(after.ids)
        if question in earlier
    ]
    return sorted(pairs, key=lambda pair: pair.before_right == pair.after_right)
