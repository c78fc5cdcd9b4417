"""Losses on single completions that were liked or not (KTO): no pairs needed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.preference.pairwise import check_beta


def kto_terms(
    logprobs: Float[Tensor, "B"],
    ref_logprobs: Float[Tensor, "B"],
    liked: Bool[Tensor, "B"],
    baseline: Float[Tensor, ""],
    beta: float,
    liked_weight: float = 1.0,
    disliked_weight: float = 1.0,
) -> Float[Tensor, "B"]:
    """liked: w (1 - sigma(beta (r - z))), disliked: w (1 - sigma(beta (z - r))), with r = log pi -
    log ref summed over the completion.

    Ethayarajh 2024, eq. 8. `baseline` z (`kto_baseline`) carries no gradient.
    """
    check_beta(beta)
    gain = beta * (logprobs - ref_logprobs - baseline.detach())
    return torch.where(
        liked, liked_weight * torch.sigmoid(-gain), disliked_weight * torch.sigmoid(gain)
    )


def kto_baseline(
    mismatched: Float[Tensor, "B"], ref_mismatched: Float[Tensor, "B"]
) -> Float[Tensor, ""]:
    """z = max(0, mean of log pi - log ref) over completions put behind another prompt: an estimate
    of the KL (section 4.1).

    Raises ValueError for a batch of one, in which there is no other prompt.
    """
    if len(mismatched) < 2:
        raise ValueError(
            f"batch_size ({len(mismatched)}) must be at least 2 for kto: its baseline pairs other prompts"
        )
    return (mismatched - ref_mismatched).mean().clamp(min=0).detach()


def mismatched_prompts(prompts: Sequence[Hashable]) -> list[int]:
    """Whose completion stands behind each prompt when the baseline is estimated: that of the first
    row after it, going round, that has another prompt.

    Raises ValueError where all prompts are the same.
    """
    count = len(prompts)
    if len(set(prompts)) < 2:
        raise ValueError(
            f"all {count} examples have the same prompt, and the baseline of kto puts a completion behind another"
            " prompt: give examples of two prompts at least, or pairs and preference=dpo"
        )
    start = next(i for i in range(count) if prompts[i] != prompts[(i + 1) % count])
    found = [0] * count
    for i in (j % count for j in range(start + count, start, -1)):
        after = (i + 1) % count
        found[i] = after if prompts[after] != prompts[i] else found[after]
    return found


def balanced_weights(num_liked: int, num_disliked: int) -> tuple[float, float]:
    """(liked, disliked) weights with liked_weight n_liked / (disliked_weight n_disliked) in [1,
    4/3], the larger class at 1 (eq. 9).
    """
    if num_liked == 0 or num_disliked == 0:
        raise ValueError(
            f"{num_liked} liked and {num_disliked} disliked completions: kto needs some of both to balance"
        )
    ratio = num_liked / num_disliked
    if ratio < 1:
        return 1 / ratio, 1.0
    if ratio > 4 / 3:
        return 1.0, ratio * 3 / 4
    return 1.0, 1.0
