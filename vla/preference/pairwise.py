"""Losses on pairs of a chosen and a rejected completion: DPO, IPO, SimPO and ORPO.

`chosen` and `rejected` are the policy's log-probabilities of whole completions, summed over tokens
(nats). `ref_*` are those of the reference, `mean_*` are means over tokens. A loss has one term per
pair; the loss of a batch is the mean of its terms.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

Pairs = Float[Tensor, "B"]


def log_ratio_margin(
    chosen: Pairs, rejected: Pairs, ref_chosen: Pairs, ref_rejected: Pairs
) -> Pairs:
    """h = (log pi(c) - log ref(c)) - (log pi(r) - log ref(r)): difference of implicit rewards."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def dpo_terms(
    chosen: Pairs,
    rejected: Pairs,
    ref_chosen: Pairs,
    ref_rejected: Pairs,
    beta: float,
    label_smoothing: float = 0.0,
    target_margin: Pairs | float = 0.0,
) -> Pairs:
    """-log sigma(beta h - m) (Rafailov 2023, eq. 7), with the offset m = `target_margin`.

    The offset is that of Amini 2024. `label_smoothing` e is the probability that a label is
    flipped: -(1 - e) log sigma(beta h - m) - e log sigma(m - beta h) (conservative DPO, Mitchell
    2023).

    Raises:
        ValueError: `beta` is not positive, or `label_smoothing` is not in [0, 0.5).
    """
    check_beta(beta)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing ({label_smoothing}) must lie in [0, 0.5): "
            "at 0.5 the labels carry no information"
        )
    margin = beta * log_ratio_margin(chosen, rejected, ref_chosen, ref_rejected) - target_margin
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def ipo_terms(
    chosen: Pairs, rejected: Pairs, ref_chosen: Pairs, ref_rejected: Pairs, beta: float
) -> Pairs:
    """(h - 1 / (2 beta))^2 (Azar 2023, eq. 17).

    TRL uses means over tokens, OpenRLHF sums. Our default is means: with a fixed target for sums,
    the change per token shrinks with the length of the completions.

    Raises:
        ValueError: `beta` is not positive.
    """
    check_beta(beta)
    return (log_ratio_margin(chosen, rejected, ref_chosen, ref_rejected) - 1 / (2 * beta)).square()


def simpo_terms(
    mean_chosen: Pairs, mean_rejected: Pairs, beta: float, target_margin: float
) -> Pairs:
    """-log sigma(beta (mean_c - mean_r) - gamma) (Meng 2024, eq. 6), without a reference.

    Usual values: beta 2 to 10, gamma / beta .3 to .5.

    Raises:
        ValueError: `beta` is not positive.
    """
    check_beta(beta)
    return -logsigmoid(beta * (mean_chosen - mean_rejected) - target_margin)


def orpo_terms(mean_chosen: Pairs, mean_rejected: Pairs, weight: float) -> Pairs:
    """-mean_c - weight log sigma(log odds(c) - log odds(r)) (Hong 2024, eq. 6 and 7).

    odds = p / (1 - p) with p = exp(mean). The first term is the cross-entropy of the chosen
    completion, so neither SFT nor a reference is needed.

    Raises:
        ValueError: `weight` is not positive.
    """
    if weight <= 0:
        raise ValueError(
            f"weight ({weight}) must be positive; without it this is supervised fine-tuning"
        )
    return -mean_chosen - weight * logsigmoid(log_odds(mean_chosen) - log_odds(mean_rejected))


CERTAIN = -1e-8
"""Upper bound of log p for odds: at log p = 0 the odds and their gradient are infinite."""


def log_odds(logprob: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """log(p / (1 - p)) from log p, exact near p = 1 and p = 0.

    A log p above `CERTAIN` is clamped to it and gets no gradient.
    """
    # log(1 - p) as log(-expm1(log p)): 1 - p itself cancels near p = 1
    logprob = logprob.clamp(max=CERTAIN)
    return logprob - torch.log(-torch.expm1(logprob))


def check_beta(beta: float) -> None:
    """Raise ValueError where `beta`, the scale of the implicit reward, is not positive."""
    if beta <= 0:
        raise ValueError(
            f"beta ({beta}) must be positive; .1 is usual for dpo, .01 to .1 for ipo, 2 for simpo"
        )
