"""Best-of-n sampling, its KL bound, and majority voting."""

from __future__ import annotations

import math
from collections.abc import Sequence


def best_of(
    rewards: Sequence[float], lengths: Sequence[int], min_reward: float = -math.inf
) -> int | None:
    """Index of the sample with the highest reward; of equals the shortest, then the first.

    None if no reward reaches `min_reward`. NaN rewards are skipped.
    """
    eligible = [
        i for i, reward in enumerate(rewards) if not math.isnan(reward) and reward >= min_reward
    ]
    return min(eligible, key=lambda i: (-rewards[i], lengths[i], i), default=None)


def best_of_kl(n: int) -> float:
    """Upper bound in nats on the KL of best-of-n from its policy: log n - (n - 1) / n (Stiennon et
    al. 2020).

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n ({n}) must be at least 1")
    return math.log(n) - (n - 1) / n


def majority_vote(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, of equals the first (self-consistency, Wang et al. 2022).

    None in `answers` is no answer; None is returned if there are no others.
    """
    votes = [answer for answer in answers if answer is not None]
    return max(dict.fromkeys(votes), key=votes.count, default=None)
