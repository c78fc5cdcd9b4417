"""Losses on ranked lists of any length (Plackett-Luce), and the reward model's pairwise loss
(Bradley-Terry)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def plackett_luce_terms(
    scores: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]
) -> Float[Tensor, "B"]:
    """-log P(ranking) = -sum_k (s_k - log sum_{j >= k} exp s_j), columns from best to worst
    (Plackett 1975; Luce 1959).

    Scores beta (log pi - log ref) make it DPO's form for rankings (Rafailov 2023, eq. 18), scores
    of a reward model Ouyang's for lists. `present` is False where a list is shorter; absent columns
    stand last. With two columns it is -log sigma(s_1 - s_2).
    """
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

    Bradley and Terry 1952; margin as in Touvron 2023 (Llama 2, eq. 2); reward_centering_weight keeps rewards near
    0 (Eisenstein 2023), .01 is usual.
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    terms = -logsigmoid(difference)
    return (
        terms
        if reward_centering_weight == 0
        else terms + reward_centering_weight * (chosen + rejected).square()
    )


def pairwise_terms(
    rewards: Float[Tensor, "B K"],
    present: Bool[Tensor, "B K"],
    reward_centering_weight: float = 0.0,
    margins: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, "B"]:
    """Bradley-Terry's loss averaged over all pairs of a ranking, columns from best to worst; absent
    columns stand last. `margins`: what each ranking asks of its pairs.

    All pairs of a prompt go into one step and weigh as much as one, lest the longest rankings be
    overfitted (Ouyang 2022, eq. 1).
    """
    better, worse, counts = ranked_pairs(rewards, present)
    margin = None if margins is None else margins[:, None].expand_as(better)
    terms = bradley_terry_terms(better, worse, margin, reward_centering_weight)
    return terms.where(counts, 0.0).sum(1) / counts.sum(1).clamp(min=1)


def ranked_pairs(
    rewards: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]
) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """(rewards of the better, of the worse, whether both are there) of all pairs, columns from best
    to worst."""
    first, second = torch.triu_indices(rewards.shape[1], rewards.shape[1], 1, device=rewards.device)
    return rewards[:, first], rewards[:, second], present[:, second]


def best_and_worst_index(
    scores: Float[Tensor, "K"], min_margin: float = 0.0
) -> tuple[int, int] | None:
    """(best, worst) of K scored completions; None when they differ by `min_margin` or less, or a
    score is NaN."""
    if bool(scores.isnan().any()):
        return None
    best, worst = int(scores.argmax()), int(scores.argmin())
    return (best, worst) if float(scores[best] - scores[worst]) > min_margin else None
