"""KTO (Ethayarajh 2024): a loss on single completions that were liked or not."""

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
    """Liked: w (1 - sigma(beta (r - z))); disliked: w (1 - sigma(beta (z - r))).

    Ethayarajh 2024, eq. 8. r = log pi - log ref is summed over the completion (nats). `baseline` z
    (`kto_baseline`) carries no gradient.

    Raises:
        ValueError: `beta` is not positive.
    """
    check_beta(beta)
    gain = beta * (logprobs - ref_logprobs - baseline.detach())
    return torch.where(
        liked, liked_weight * torch.sigmoid(-gain), disliked_weight * torch.sigmoid(gain)
    )


def kto_baseline(
    mismatched: Float[Tensor, "B"], ref_mismatched: Float[Tensor, "B"]
) -> Float[Tensor, ""]:
    """z = max(0, mean of log pi - log ref) over completions behind another prompt.

    It estimates the KL divergence from the reference (section 4.1).

    Raises:
        ValueError: the batch has fewer than two rows.
    """
    if len(mismatched) < 2:
        raise ValueError(
            f"batch_size ({len(mismatched)}) must be at least 2 for kto: "
            "its baseline pairs other prompts"
        )
    return (mismatched - ref_mismatched).mean().clamp(min=0).detach()


def mismatched_prompts(prompts: Sequence[Hashable]) -> list[int]:
    """For each prompt, the row whose completion follows it in the baseline.

    It is the next row with another prompt, cyclically.

    Raises:
        ValueError: all prompts are the same.
    """
    count = len(prompts)
    if len(set(prompts)) < 2:
        raise ValueError(
            f"all {count} examples have the same prompt, and the baseline of kto puts a "
            "completion behind another prompt: give examples of two prompts at least, or pairs "
            "and preference=dpo"
        )
    # One backward pass from the end of a run of equal prompts: a row takes its successor, or the
    # partner of its successor where both have one prompt.
    start = next(i for i in range(count) if prompts[i] != prompts[(i + 1) % count])
    partners = [0] * count
    for i in (j % count for j in range(start + count, start, -1)):
        after = (i + 1) % count
        partners[i] = after if prompts[after] != prompts[i] else partners[after]
    return partners


def balanced_weights(num_liked: int, num_disliked: int) -> tuple[float, float]:
    """(liked, disliked) weights, with w_l n_l / (w_d n_d) in [1, 4/3] (Ethayarajh 2024, eq. 9).

    The larger class has weight 1.

    Raises:
        ValueError: one class is empty.
    """
    if num_liked == 0 or num_disliked == 0:
        raise ValueError(
            f"{num_liked} liked and {num_disliked} disliked completions: "
            "kto needs some of both to balance"
        )
    ratio = num_liked / num_disliked
    if ratio < 1:
        return 1 / ratio, 1.0
    if ratio > 4 / 3:
        return 1.0, ratio * 3 / 4
    return 1.0, 1.0
