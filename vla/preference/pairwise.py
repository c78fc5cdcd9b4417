"""Losses on pairs of completions, one chosen and one rejected: a term for each pair.

`chosen` and `rejected` are log-probabilities of whole completions (summed over tokens, in nats)
under the policy, `ref_*` under the reference; `mean_*` are means over tokens. A batch's loss is the
mean of its terms.
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
    """h = (log pi(c) - log ref(c)) - (log pi(r) - log ref(r)): how much further it moved to the
    chosen."""
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
    """-log sigma(beta h - m) (Rafailov 2023, eq. 7; the offset m of Amini 2024, `target_margin`, is
    0 there).

    With `label_smoothing` e, the chance that a label is flipped: -(1 - e) log sigma(beta h - m) - e
    log sigma(m - beta h) (conservative DPO, Mitchell 2023).
    """
    check_beta(beta)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing ({label_smoothing}) must lie in [0, 0.5): at 0.5 the labels say nothing"
        )
    margin = beta * log_ratio_margin(chosen, rejected, ref_chosen, ref_rejected) - target_margin
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def ipo_terms(
    chosen: Pairs, rejected: Pairs, ref_chosen: Pairs, ref_rejected: Pairs, beta: float
) -> Pairs:
    """(h - 1 / (2 beta))^2 (Azar 2023, eq. 17).

    Given means over tokens it is TRL's form, given sums OpenRLHF's; ours is the former by default,
    because a fixed target for sums asks for a smaller change per token the longer the completions
    are.
    """
    check_beta(beta)
    return (log_ratio_margin(chosen, rejected, ref_chosen, ref_rejected) - 1 / (2 * beta)).square()


def simpo_terms(
    mean_chosen: Pairs, mean_rejected: Pairs, beta: float, target_margin: float
) -> Pairs:
    """-log sigma(beta (mean_c - mean_r) - gamma) (Meng 2024, eq. 6): no reference. Usual: beta 2 to
    10, gamma / beta .3 to .5.
    """
    check_beta(beta)
    return -logsigmoid(beta * (mean_chosen - mean_rejected) - target_margin)


def orpo_terms(mean_chosen: Pairs, mean_rejected: Pairs, weight: float) -> Pairs:
    """-mean_c - weight log sigma(log odds(c) - log odds(r)), odds = p / (1 - p), p = exp(mean)
    (Hong 2024, eq. 6 and 7).

    The first term is the usual cross-entropy on the chosen completion, so it needs neither SFT
    before nor a reference.
    """
    if weight <= 0:
        raise ValueError(
            f"weight ({weight}) must be positive; without it this is supervised fine-tuning"
        )
    return -mean_chosen - weight * logsigmoid(log_odds(mean_chosen) - log_odds(mean_rejected))


CERTAIN = -1e-8
"""The largest log p of which odds are taken. At log p = 0 they and their gradient are infinite."""


def log_odds(logprob: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """log(p / (1 - p)) from log p, exact near p = 1 and p = 0; of a log p above `CERTAIN`, that of
    `CERTAIN`, without gradient.
    """
    logprob = logprob.clamp(max=CERTAIN)
    return logprob - torch.log(-torch.expm1(logprob))


def check_beta(beta: float) -> None:
    """Refuse a temperature of the implicit reward that is not positive."""
    if beta <= 0:
        raise ValueError(
            f"beta ({beta}) must be positive; .1 is usual for dpo, .01 to .1 for ipo, 2 for simpo"
        )
