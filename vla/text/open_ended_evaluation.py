"""Evaluation of open-ended answers: gold rewards on held-out prompts, before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla.evaluation.result import EvaluationResult, compare_results, success_result
from vla.rewards.gold_rewards import GoldReward
from vla.text.prompts import Completion
from vla.text.text_report import AnswerPair

WORDS = "words"
FINISHED = "finished"
"""Measures of an answer: its number of words, and 1 if it is not truncated."""


def evaluate_open_answers(
    answers: Sequence[Sequence[Completion]], gold: GoldReward
) -> EvaluationResult:
    """Gold rewards of the first answer to every prompt, which is greedy."""
    first = [completions[0] for completions in answers]
    return EvaluationResult(
        "score",
        tuple(answer.prompt for answer in first),
        tuple(float(gold(answer.prompt, answer.text)) for answer in first),
        None,
        outputs=tuple(answer.text for answer in first),
        measures={
            WORDS: tuple(float(len(answer.text.split())) for answer in first),
            FINISHED: tuple(float(answer.finished) for answer in first),
        },
    )


def open_ended_results(before: EvaluationResult, after: EvaluationResult) -> dict[str, object]:
    """Results of a run on open prompts, with the same prompts before and after."""
    change = after.scores - before.scores
    decided = np.flatnonzero(change != 0)
    wins = success_result(
        [after.ids[row] for row in decided], change[decided] > 0, after.temperature
    )
    both = {"before": before, "after": after}
    return {
        "gold before": before.without_outputs(),
        "gold after": after.without_outputs(),
        "gold change": compare_results(before, after, noun="prompts"),
        "wins among decided": wins if wins.n else None,
        "words": {when: result.mean_measure(WORDS) for when, result in both.items()},
        "finished": {when: result.mean_measure(FINISHED) for when, result in both.items()},
        "distinct pairs of words": {
            when: distinct_pairs(result.outputs) for when, result in both.items()
        },
    }


def distinct_pairs(texts: Sequence[str]) -> float:
    """Share of distinct bigrams among the word bigrams of all texts (distinct-2, Li 2016)."""
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:])]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def pair_open_answers(before: EvaluationResult, after: EvaluationResult) -> list[AnswerPair]:
    """Pairs of answers, those with the largest changes first."""
    order = np.argsort(-np.abs(after.scores - before.scores))
    return [
        AnswerPair(
            str(before.ids[row]),
            f"gold {before.values[row]:.2f}, then {after.values[row]:.2f}",
            before.outputs[row],
            after.outputs[row],
            None,
            None,
        )
        for row in order
    ]
