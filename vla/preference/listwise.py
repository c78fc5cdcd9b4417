"""Losses on rankings: Plackett-Luce for policies, Bradley-Terry on all pairs for reward models."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def plackett_luce_terms(
    scores: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]
) -> Float[Tensor, "B"]:
    """-log P(ranking) = -sum_k (s_k - log sum_{j >= k} exp s_j) (Plackett 1975; Luce 1959).

    Columns run from best to worst. With scores beta (log pi - log ref) it is DPO for rankings
    (Rafailov 2023, eq. 18). With two columns it is -log sigma(s_1 - s_2). `present` is False in the
    trailing columns of shorter lists.
    """
    # flipped, so that the cumulative sum of column k runs over the completions j >= k
    masked = scores.masked_fill(~present, -torch.inf)
    rest = masked.flip(1).logcumsumexp(1).flip(1)
    return (rest - scores).where(present, 0.0).sum(1)


def bradley_terry_terms(
    chosen: Float[Tensor, "*B"],
    rejected: Float[Tensor, "*B"],
    margin: Float[Tensor, "*B"] | None = None,
    reward_centering_weight: float = 0.0,
) -> Float[Tensor, "*B"]:
    """-log sigma(r_c - r_r - margin) + reward_centering_weight (r_c + r_r)^2.

    Bradley and Terry 1952; the margin as in Touvron 2023 (Llama 2, eq. 2). The centering term keeps
    rewards near 0 (Eisenstein 2023); .01 is usual.
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    terms = -logsigmoid(difference)
    if reward_centering_weight == 0:
        return terms
    return terms + reward_centering_weight * (chosen + rejected).square()


def pairwise_terms(
    rewards: Float[Tensor, "B K"],
    present: Bool[Tensor, "B K"],
    reward_centering_weight: float = 0.0,
    margins: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, "B"]:
    """Bradley-Terry loss of each ranking, averaged over all its pairs (Ouyang 2022, eq. 1).

    Columns run from best to worst; absent columns stand last. `margins` holds one margin per
    ranking, for all its pairs. All pairs of a prompt are in one step and weigh as much as one, so
    that long rankings are not overfitted.
    """
    better, worse, counts = ranked_pairs(rewards, present)
    margin = None if margins is None else margins[:, None].expand_as(better)
    terms = bradley_terry_terms(better, worse, margin, reward_centering_weight)
    return terms.where(counts, 0.0).sum(1) / counts.sum(1).clamp(min=1)


def ranked_pairs(
    rewards: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]
) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """(better rewards, worse rewards, mask of present pairs) of all pairs of columns."""
    # columns run from best to worst, so the upper triangle holds every pair with the better first
    first, second = torch.triu_indices(rewards.shape[1], rewards.shape[1], 1, device=rewards.device)
    return rewards[:, first], rewards[:, second], present[:, second]


def best_and_worst_index(
    scores: Float[Tensor, "K"], min_margin: float = 0.0
) -> tuple[int, int] | None:
    """(best, worst) column of K scores.

    None where they differ by `min_margin` or less, or a score is NaN.
    """
    if bool(scores.isnan().any()):
        return None
    best = int(scores.argmax())
    worst = int(scores.argmin())
    return (best, worst) if float(scores[best] - scores[worst]) > min_margin else None
