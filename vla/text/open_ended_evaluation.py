"""The evaluation of open-ended answers: the mean gold reward on held-out prompts, and how often an
answer beats the one before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vla.evaluation.result import EvaluationResult, compare_results, success_result
from vla.rewards.gold_rewards import GoldReward
from vla.text.prompts import Completion
from vla.text.text_report import AnswerPair

WORDS = "words"
FINISHED = "finished"
"""Measures of an answer: its number of words, and whether it ended by itself."""


def evaluate_open_answers(
    answers: Sequence[Sequence[Completion]], gold: GoldReward
) -> EvaluationResult:
    """The gold rewards of the first answer to every prompt; the answers are greedy."""
    first = [completions[0] for completions in answers]
    return EvaluationResult(
        "score",
        tuple(said.prompt for said in first),
        tuple(float(gold(said.prompt, said.text)) for said in first),
        None,
        outputs=tuple(said.text for said in first),
        measures={
            WORDS: tuple(float(len(said.text.split())) for said in first),
            FINISHED: tuple(float(said.finished) for said in first),
        },
    )


def open_ended_results(before: EvaluationResult, after: EvaluationResult) -> dict[str, Any]:
    """The numbers of a run on open prompts; the same prompts before and after."""
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
    """Share of the pairs of neighbouring words that are different ones, over all texts: diversity
    (Li 2016, distinct-2).
    """
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:])]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def pair_open_answers(before: EvaluationResult, after: EvaluationResult) -> list[AnswerPair]:
    """Answers side by side, the largest changes first."""
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
