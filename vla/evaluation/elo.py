"""Strengths of players from pairwise preferences: Bradley and Terry's model on Elo's scale, with
intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

SCALE, CENTRE = 400 / math.log(10), 1000.0
"""Elo's scale: 400 points are odds of ten to one. The mean of all players is 1000."""
VIRTUAL = 0.5
"""Of a win, added to either side of every pair that met: a player that never lost stays finite
(Jeffreys' prior)."""


@dataclass(frozen=True)
class Preferences:
    """`n` comparisons: `first` [n] and `second` [n] number the players, `score` [n] is 1 where the
    first was preferred, 0 where the second was, or a probability between. `question` [n] says which
    prompt they answered.
    """

    first: Int[np.ndarray, "n"]
    second: Int[np.ndarray, "n"]
    score: Float[np.ndarray, "n"]
    question: Int[np.ndarray, "n"]

    def wins(
        self, num_players: int, weight: Float[np.ndarray, "n"] | None = None
    ) -> Float[np.ndarray, "N N"]:
        """`wins[i, j]`: how often i was preferred to j, half a win added on both sides where the
        two met."""
        weight = np.ones(len(self.score)) if weight is None else weight
        table = np.zeros((num_players, num_players))
        np.add.at(table, (self.first, self.second), weight * self.score)
        np.add.at(table, (self.second, self.first), weight * (1 - self.score))
        return table + VIRTUAL * ((table + table.T) > 0)


def elo_ratings(wins: Float[np.ndarray, "N N"], num_steps: int = 50) -> Float[np.ndarray, "N"]:
    """Elo ratings whose mean is 1000, of largest likelihood: P(i beats j) = 1 / (1 + 10^((r_j -
    r_i) / 400)).

    Newton's method on log strengths (Bradley and Terry 1952). Raises ValueError where some players
    never met the others, not even through a third: nothing compares them.
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
    """A player's rating with its 95 % bootstrap interval over prompts, and its share of wins
    against all others."""

    name: str
    rating: float
    interval: tuple[float, float]
    win_rate: float
    num_comparisons: int

    def __str__(self) -> str:
        low, high = self.interval
        share = f"preferred in {100 * self.win_rate:.1f} % of {self.num_comparisons}"
        return f"{self.name}: Elo {self.rating:.0f} (95 % bootstrap interval {low:.0f} to {high:.0f}; {share})"

    def to_dict(self) -> dict[str, Any]:
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
    """The players, strongest first. Whole prompts are resampled: comparisons on one prompt are not
    independent."""
    ratings = elo_ratings(preferences.wins(len(names)))
    questions, which = np.unique(preferences.question, return_inverse=True)
    generator, drawn = np.random.default_rng(seed), []
    for _ in range(num_resamples):
        times = np.bincount(
            generator.integers(len(questions), size=len(questions)), minlength=len(questions)
        )
        wins = preferences.wins(len(names), times[which].astype(np.float64))
        met = preferences.wins(len(names)) > 0
        drawn.append(elo_ratings(np.where(met & (wins == 0), VIRTUAL, wins)))
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    found = []
    for i, name in enumerate(names):
        mine, theirs = preferences.first == i, preferences.second == i
        scores = np.concatenate([preferences.score[mine], 1 - preferences.score[theirs]])
        interval = (float(low[i]), float(high[i]))
        found.append(
            PlayerRating(name, float(ratings[i]), interval, float(scores.mean()), len(scores))
        )
    return sorted(found, key=lambda standing: -standing.rating)
