"""Statistics of evaluations: Wilson interval, McNemar's exact test, bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Outcomes = Sequence[bool] | np.ndarray
"""Success of each start, in the order of the starts."""

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""
NUM_RESAMPLES = 4_000
NUM_COUNT_RESAMPLES = 10_000
"""Bootstrap resamples of values, and of counts of few levels."""


def wilson_interval(successes: int, num_starts: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a proportion (Wilson 1927), 95 % by default.

    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), with p = successes / n.

    Raises ValueError unless 0 <= successes <= num_starts and num_starts > 0.
    """
    if not 0 <= successes <= num_starts or num_starts < 1:
        raise ValueError(
            f"successes ({successes}) must lie in 0 to num_starts ({num_starts}), and num_starts "
            "above 0"
        )
    rate = successes / num_starts
    spread = z * z / num_starts
    centre = rate + spread / 2
    half = math.sqrt(spread * rate * (1 - rate) + spread * spread / 4)
    # At 0 and n the bound is exact; rounding would put it slightly outside [0, 1].
    low = 0.0 if successes == 0 else (centre - half) / (1 + spread)
    high = 1.0 if successes == num_starts else (centre + half) / (1 + spread)
    return low, high


@dataclass(frozen=True)
class SuccessRate:
    """A success rate by its counts; `temperature` is None for greedy decoding."""

    successes: int
    num_starts: int
    temperature: float | None

    @classmethod
    def from_outcomes(cls, outcomes: Outcomes, temperature: float | None) -> SuccessRate:
        """The rate of the outcomes of all starts."""
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
        return describe_decoding(self.temperature)

    def __str__(self) -> str:
        low, high = (f"{100 * bound:.1f}" for bound in self.interval)
        counts = f"{self.successes}/{self.num_starts}"
        return (
            f"{100 * self.rate:.1f} % ({counts}, 95 % Wilson interval {low} to {high}, "
            f"{self.decoding})"
        )


def describe_decoding(temperature: float | None) -> str:
    """`greedy`, or `sampled at temperature 0.7`."""
    return "greedy" if temperature is None else f"sampled at temperature {temperature:g}"


def mcnemar_exact(only_before: int, only_after: int) -> float:
    """McNemar's exact two-sided p-value (McNemar 1947) of starts that succeed only before or only
    after.

    p = min(1, 2 sum_{i <= min(b, c)} C(b + c, i) / 2^(b + c))
    """
    changed = only_before + only_after
    fewer = min(only_before, only_after)
    tail = sum(math.comb(changed, i) for i in range(fewer + 1))
    return min(1.0, 2 * tail / 2**changed)


def bootstrap_interval(
    values: Float[np.ndarray, "n"], seed: int = 0, levels: Sequence[int] | None = None
) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` over resampled items (Efron 1979).

    Values of a few `levels` are resampled by their counts, which are multinomial. That needs no
    [resamples, n] table, so more resamples are drawn.
    """
    generator = np.random.default_rng(seed)
    if levels is None:
        rows = generator.integers(len(values), size=(NUM_RESAMPLES, len(values)))
        means = values[rows].mean(1)
    else:
        shares = np.array([(values == level).sum() for level in levels]) / len(values)
        counts = generator.multinomial(len(values), shares, size=NUM_COUNT_RESAMPLES)
        means = counts @ np.array(levels) / len(values)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
