"""Elo ratings from pairwise preferences by the Bradley-Terry model, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

SCALE = 400 / math.log(10)
"""Elo points per nat of log odds: 400 points are odds of ten to one."""
CENTRE = 1000.0
"""Mean rating of all players."""
VIRTUAL = 0.5
"""Wins added to both players of every compared pair, so that ratings stay finite (Jeffreys'
prior)."""


@dataclass(frozen=True)
class Preferences:
    """`n` comparisons of two players' answers.

    `first` [n] and `second` [n] are indices of players. `score` [n] is 1 where the first was
    preferred, 0 where the second was, or a probability. `question` [n] is the index of the prompt.
    """

    first: Int[np.ndarray, "n"]
    second: Int[np.ndarray, "n"]
    score: Float[np.ndarray, "n"]
    question: Int[np.ndarray, "n"]

    def wins(
        self, num_players: int, weight: Float[np.ndarray, "n"] | None = None
    ) -> Float[np.ndarray, "N N"]:
        """Weighted number of times that i was preferred to j, plus `VIRTUAL` for compared pairs."""
        weight = np.ones(len(self.score)) if weight is None else weight
        table = np.zeros((num_players, num_players))
        np.add.at(table, (self.first, self.second), weight * self.score)
        np.add.at(table, (self.second, self.first), weight * (1 - self.score))
        return table + VIRTUAL * ((table + table.T) > 0)


def elo_ratings(wins: Float[np.ndarray, "N N"], num_steps: int = 50) -> Float[np.ndarray, "N"]:
    """Maximum-likelihood Elo ratings with mean 1000: P(i beats j) = 1 / (1 + 10^((r_j - r_i)/400)).

    Newton's method on log strengths (Bradley and Terry 1952).

    Raises:
        ValueError: the graph of comparisons is not connected.
    """
    played = wins + wins.T
    reached = np.linalg.matrix_power((played > 0) + np.eye(len(wins)), len(wins)) > 0
    if not reached.all():
        raise ValueError(
            "some players were never compared with the others, not even through a third one"
        )
    rating = np.zeros(len(wins))
    for _ in range(num_steps):
        chance = 1 / (1 + np.exp(rating[None, :] - rating[:, None]))
        gradient = (wins - played * chance).sum(1)
        curvature = played * chance * (1 - chance)
        hessian = np.diag(curvature.sum(1)) - curvature
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        rating += step - step.mean()
        if np.abs(step).max() < 1e-10:
            break
    return CENTRE + SCALE * rating


@dataclass(frozen=True)
class PlayerRating:
    """A player's rating with its 95 % bootstrap interval over prompts, and its win rate."""

    name: str
    rating: float
    interval: tuple[float, float]
    win_rate: float
    num_comparisons: int

    def __str__(self) -> str:
        low, high = self.interval
        share = f"preferred in {100 * self.win_rate:.1f} % of {self.num_comparisons}"
        return (
            f"{self.name}: Elo {self.rating:.0f} (95 % bootstrap interval {low:.0f} to {high:.0f}; "
            f"{share})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The rating as in elo.json."""
        return {
            "name": self.name,
            "elo": self.rating,
            "bootstrap_95": list(self.interval),
            "win_rate": self.win_rate,
            "num_comparisons": self.num_comparisons,
        }


def rank_players(
    names: Sequence[str], preferences: Preferences, num_resamples: int = 400, seed: int = 0
) -> list[PlayerRating]:
    """Rate the players, strongest first.

    The bootstrap resamples whole prompts: comparisons on one prompt are not independent.
    """
    ratings = elo_ratings(preferences.wins(len(names)))
    questions, which = np.unique(preferences.question, return_inverse=True)
    generator = np.random.default_rng(seed)
    resampled = []
    for _ in range(num_resamples):
        times = np.bincount(
            generator.integers(len(questions), size=len(questions)), minlength=len(questions)
        )
        wins = preferences.wins(len(names), times[which].astype(np.float64))
        compared = preferences.wins(len(names)) > 0
        resampled.append(elo_ratings(np.where(compared & (wins == 0), VIRTUAL, wins)))
    low, high = np.quantile(np.array(resampled), [0.025, 0.975], axis=0)
    players: list[PlayerRating] = []
    for i, name in enumerate(names):
        is_first = preferences.first == i
        is_second = preferences.second == i
        scores = np.concatenate([preferences.score[is_first], 1 - preferences.score[is_second]])
        interval = (float(low[i]), float(high[i]))
        players.append(
            PlayerRating(name, float(ratings[i]), interval, float(scores.mean()), len(scores))
        )
    return sorted(players, key=lambda player: -player.rating)
