"""Losses on single completions that were liked or not (KTO): no pairs needed."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.preference.pairs import check_beta


def kto_terms(
    logprobs: Float[Tensor, "B"],
    ref_logprobs: Float[Tensor, "B"],
    liked: Bool[Tensor, "B"],
    baseline: Float[Tensor, ""],
    beta: float,
    liked_weight: float = 1.0,
    disliked_weight: float = 1.0,
) -> Float[Tensor, "B"]:
    """liked: w (1 - sigma(beta (r - z))), disliked: w (1 - sigma(beta (z - r))), with r = log pi - log ref summed over
    the completion.

    Ethayarajh 2024, eq. 8. `baseline` z (`kto_baseline`) carries no gradient.
    """
    check_beta(beta)
    gain = beta * (logprobs - ref_logprobs - baseline.detach())
    return torch.where(liked, liked_weight * torch.sigmoid(-gain), disliked_weight * torch.sigmoid(gain))


def kto_baseline(mismatched: Float[Tensor, "B"], ref_mismatched: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """z = max(0, mean of log pi - log ref) over completions put behind another prompt: an estimate of the KL (section
    4.1).

    Raises ValueError for a batch of one, in which there is no other prompt.
    """
    if len(mismatched) < 2:
        raise ValueError(f"batch_size ({len(mismatched)}) must be at least 2 for kto: its baseline pairs other prompts")
    return (mismatched - ref_mismatched).mean().clamp(min=0).detach()


def mismatch(rows: int) -> list[int]:
    """Whose completion stands behind prompt i when the baseline is estimated: the next one's."""
    return [(i + 1) % rows for i in range(rows)]


def balanced_weights(num_liked: int, num_disliked: int) -> tuple[float, float]:
    """(liked, disliked) weights with liked_weight n_liked / (disliked_weight n_disliked) in [1, 4/3], the larger class
    at 1 (eq. 9).
    """
    if num_liked == 0 or num_disliked == 0:
        raise ValueError(f"{num_liked} liked and {num_disliked} disliked completions: kto needs some of both")
    ratio = num_liked / num_disliked
    if ratio < 1:
        return 1 / ratio, 1.0
    if ratio > 4 / 3:
        return 1.0, ratio * 3 / 4
    return 1.0, 1.0
