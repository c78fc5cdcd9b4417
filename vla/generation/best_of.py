"""Best-of-n: the sample that a reward likes most, and how far from the policy that choice leads."""

from __future__ import annotations

import math
from collections.abc import Sequence


def best_of(
    rewards: Sequence[float], lengths: Sequence[int], min_reward: float = -math.inf
) -> int | None:
    """Number of the sample with the highest reward, of equals the shortest, then the first; None
    when none reaches `min_reward`. NaN rewards are passed over.
    """
    eligible = [
        i for i, reward in enumerate(rewards) if not math.isnan(reward) and reward >= min_reward
    ]
    return min(eligible, key=lambda i: (-rewards[i], lengths[i], i), default=None)


def best_of_kl(n: int) -> float:
    """Upper bound, in nats, on the KL of best-of-n from the policy it samples: log n - (n - 1) / n
    (Stiennon 2020)."""
    if n < 1:
        raise ValueError(f"n ({n}) must be at least 1")
    return math.log(n) - (n - 1) / n


def majority_vote(answers: Sequence[str | None]) -> str | None:
    """The answer given most often, of equals the first given (self-consistency, Wang 2022); None is
    no answer."""
    given = [answer for answer in answers if answer is not None]
    return max(dict.fromkeys(given), key=given.count, default=None)
