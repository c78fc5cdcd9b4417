"""Success rates as they must be told: with n, an interval and the decoding; before and after on the
same starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Outcomes = Sequence[bool] | np.ndarray
"""Success of each start, in the order of the starts."""

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


def wilson_interval(successes: int, num_starts: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a proportion (Wilson 1927); 95 % unless `z` says otherwise.

    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), with p = successes / n.
    """
    if not 0 <= successes <= num_starts or num_starts < 1:
        raise ValueError(
            f"successes ({successes}) must lie in 0 to num_starts ({num_starts}), and num_starts above 0"
        )
    rate, spread = successes / num_starts, z * z / num_starts
    centre = rate + spread / 2
    half = math.sqrt(spread * rate * (1 - rate) + spread * spread / 4)
    # At 0 and n the bound is exact; rounding would put it a hair outside.
    low = 0.0 if successes == 0 else (centre - half) / (1 + spread)
    high = 1.0 if successes == num_starts else (centre + half) / (1 + spread)
    return low, high


@dataclass(frozen=True)
class SuccessRate:
    """A success rate with all that makes it a number: how many starts, which interval, how actions
    were chosen.

    `temperature` is None for greedy decoding.
    """

    successes: int
    num_starts: int
    temperature: float | None

    @classmethod
    def of(cls, outcomes: Outcomes, temperature: float | None) -> SuccessRate:
        return cls(int(np.sum(outcomes)), len(outcomes), temperature)

    @property
    def rate(self) -> float:
        return self.successes / self.num_starts

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return wilson_interval(self.successes, self.num_starts)

    @property
    def decoding(self) -> str:
        return (
            "greedy" if self.temperature is None else f"sampled at temperature {self.temperature:g}"
        )

    def __str__(self) -> str:
        low, high = (f"{100 * bound:.1f}" for bound in self.interval)
        counts = f"{self.successes}/{self.num_starts}"
        return f"{100 * self.rate:.1f} % ({counts}, 95 % Wilson interval {low} to {high}, {self.decoding})"

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "rate": self.rate,
            "successes": self.successes,
            "num_starts": self.num_starts,
            "wilson_95": [low, high],
            "decoding": self.decoding,
        }


@dataclass(frozen=True)
class PairedComparison:
    """Before and after on the same starts: how many changed each way, and whether chance explains
    it.

    `p_value` is McNemar's exact two-sided test; `interval` the 95 % paired bootstrap interval of
    the difference.
    """

    only_before: int
    only_after: int
    num_starts: int
    p_value: float
    interval: tuple[float, float]

    @property
    def difference(self) -> float:
        return (self.only_after - self.only_before) / self.num_starts

    def __str__(self) -> str:
        low, high = (f"{100 * bound:+.1f}" for bound in self.interval)
        changed = f"{self.only_after} starts gained, {self.only_before} lost of {self.num_starts}"
        p_value = f"p = {self.p_value:.2g}" if self.p_value >= 1e-300 else "p < 1e-300"
        return f"{100 * self.difference:+.1f} points (95 % interval {low} to {high}; {changed}; McNemar exact {p_value})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "difference": self.difference,
            "bootstrap_95": list(self.interval),
            "gained": self.only_after,
            "lost": self.only_before,
            "num_starts": self.num_starts,
            "mcnemar_exact_p": self.p_value,
        }


def compare(before: Outcomes, after: Outcomes, seed: int = 0) -> PairedComparison:
    """Compare two sets of outcomes start by start; ValueError when they are not of the same
    starts."""
    first, second = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"outcomes of {first.shape} and {second.shape} cannot be paired: run both on the same starts"
        )
    only_before, only_after = int((first & ~second).sum()), int((~first & second).sum())
    return PairedComparison(
        only_before,
        only_after,
        len(first),
        mcnemar_exact(only_before, only_after),
        bootstrap_interval(only_before, only_after, len(first), seed),
    )


def mcnemar_exact(only_before: int, only_after: int) -> float:
    """Two-sided exact p-value that starts change either way equally often (McNemar 1947): a fair
    coin's tail, doubled.

    p = min(1, 2 sum_{i <= min(b, c)} C(b + c, i) / 2^(b + c))
    """
    changed, fewer = only_before + only_after, min(only_before, only_after)
    tail = sum(math.comb(changed, i) for i in range(fewer + 1))
    return min(1.0, 2 * tail / 2**changed)


def bootstrap_interval(
    only_before: int, only_after: int, num_starts: int, seed: int, num_resamples: int = 10_000
) -> tuple[float, float]:
    """95 % percentile interval of the difference of rates over resampled pairs.

    A pair adds -1, 0 or +1; resampling n pairs with replacement draws the three counts from a
    multinomial.
    """
    shares = np.array([only_before, num_starts - only_before - only_after, only_after]) / num_starts
    counts = np.random.default_rng(seed).multinomial(num_starts, shares, size=num_resamples)
    low, high = np.quantile((counts[:, 2] - counts[:, 0]) / num_starts, [0.025, 0.975])
    return float(low), float(high)
