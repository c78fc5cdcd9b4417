"""How good open answers are: the mean gold reward on held-out prompts, and how often an answer
beats the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.evaluate.success import SuccessRate
from vla.rewards.gold import Gold
from vla.text.report import Pair
from vla.text.topics import Said


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % bootstrap interval over prompts."""

    mean: float
    interval: tuple[float, float]
    count: int

    @classmethod
    def of(cls, values: Float[np.ndarray, "n"], seed: int = 0, num_resamples: int = 4000) -> Mean:
        rows = np.random.default_rng(seed).integers(len(values), size=(num_resamples, len(values)))
        low, high = np.quantile(values[rows].mean(1), [0.025, 0.975])
        return cls(float(values.mean()), (float(low), float(high)), len(values))

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.mean:.3f} (95 % bootstrap interval {low:.3f} to {high:.3f}, n = {self.count})"
        )

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "bootstrap_95": list(self.interval), "n": self.count}


@dataclass(frozen=True)
class OpenJudged:
    """Answers to the evaluation prompts, one each, with their gold rewards."""

    said: tuple[Said, ...]
    rewards: tuple[float, ...]

    @classmethod
    def of(cls, answers: Sequence[Sequence[Said]], gold: Gold) -> OpenJudged:
        said = tuple(completions[0] for completions in answers)
        return cls(said, tuple(float(gold(s.prompt, s.text)) for s in said))

    @property
    def gold(self) -> Float[np.ndarray, "n"]:
        """The gold rewards."""
        return np.array(self.rewards, np.float64)


def open_results(before: OpenJudged, after: OpenJudged) -> dict[str, Any]:
    """The numbers of a run on open prompts; the same prompts before and after."""
    change = after.gold - before.gold
    decided = change != 0
    wins = SuccessRate(int((change > 0).sum()), max(int(decided.sum()), 1), None)
    return {
        "gold before": Mean.of(before.gold),
        "gold after": Mean.of(after.gold),
        "gold change": Mean.of(change),
        "wins among decided": wins,
        "words": {
            name: float(np.mean([len(s.text.split()) for s in j.said]))
            for name, j in _both(before, after)
        },
        "finished": {
            name: float(np.mean([s.finished for s in j.said])) for name, j in _both(before, after)
        },
        "distinct pairs of words": {
            name: distinct_pairs([s.text for s in j.said]) for name, j in _both(before, after)
        },
    }


def _both(before: OpenJudged, after: OpenJudged) -> list[tuple[str, OpenJudged]]:
    return [("before", before), ("after", after)]


def distinct_pairs(texts: Sequence[str]) -> float:
    """Share of the pairs of neighbouring words that are different ones, over all texts: diversity
    (Li 2016, distinct-2).
    """
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:])]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def open_pairs(before: OpenJudged, after: OpenJudged) -> list[Pair]:
    """Answers side by side, the largest changes first."""
    order = np.argsort(-np.abs(after.gold - before.gold))
    return [
        Pair(
            before.said[i].prompt,
            f"gold {before.gold[i]:.2f}, then {after.gold[i]:.2f}",
            before.said[i].text,
            after.said[i].text,
            None,
            None,
        )
        for i in order
    ]
