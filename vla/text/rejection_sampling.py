"""Rejection sampling: the best of several completions of a prompt, where one is good enough."""

from __future__ import annotations

from collections.abc import Sequence

from vla.data.chat import ChatFormat
from vla.generation.best_of import best_of
from vla.policies.text import TextPolicy
from vla.rewards.compose import Rewards
from vla.text.problem import Problem
from vla.text.prompts import Completion, sample_completions
from vla.text.sft_losses import Example
from vla.training.resumable_work import ResumableWork, load_or_compute
from vla.training.run import Run


def sample_winners(
    run: Run,
    name: str,
    policy: TextPolicy,
    chat: ChatFormat,
    problems: Sequence[Problem],
    rewards: Rewards,
    *,
    num_samples: int,
    max_prompt_tokens: int,
    min_reward: float,
) -> list[Example]:
    """The best of `num_samples` completions of each problem, kept in a stage of their own.

    Problems without a completion of at least `min_reward` have no winner.
    """
    messages = {problem.question: problem.prompt_messages for problem in problems}

    def sample(pieces: ResumableWork) -> list[Example]:
        with run.stage(name):
            completions = sample_completions(
                policy,
                chat,
                [problem.question for problem in problems],
                num_samples,
                max_prompt_tokens,
                messages_for=messages.__getitem__,
                pieces=pieces,
            )
            return pick_winners(problems, completions, rewards, min_reward)

    winners: list[Example] = load_or_compute(run, name, list[Example], sample)
    run.progress.print_line(f"{name}: {len(winners)} of {len(problems)} problems have a winner")
    return winners


def pick_winners(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[Completion]],
    rewards: Rewards,
    min_reward: float,
) -> list[Example]:
    """The best completion of every problem that has one good enough, of equals the shortest; a
    completion that was cut never wins."""
    samples = [
        problem.sample(said.text, said.finished, len(said.ids))
        for problem, group in zip(problems, completions, strict=True)
        for said in group
    ]
    totals = iter(rewards(samples).total.tolist())
    winners = []
    for group in completions:
        rewarded = [next(totals) for _ in group]
        scores = [
            reward if said.finished else float("nan")
            for said, reward in zip(group, rewarded, strict=True)
        ]
        best = best_of(scores, [len(said.ids) for said in group], min_reward)
        if best is not None:
            winners.append(Example(group[best].prompt_ids, group[best].ids))
    return winners
