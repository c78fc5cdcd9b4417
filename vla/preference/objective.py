"""Preference objectives: settings of each loss, and its terms over comparisons of any length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.plugins import find_target, load_target
from vla.preference import OBJECTIVES
from vla.preference.listwise import plackett_luce_terms
from vla.preference.pairwise import dpo_terms, ipo_terms, orpo_terms, simpo_terms
from vla.ranges import BelowHalf, NonNegative, Positive


@dataclass(frozen=True)
class DPO:
    """Direct preference optimization (Rafailov 2023); `label_smoothing` above 0 is cDPO."""

    beta: Positive
    label_smoothing: BelowHalf


@dataclass(frozen=True)
class IPO:
    """Identity preference optimization (Azar 2023); `per_token` compares means over tokens."""

    beta: Positive
    per_token: bool


@dataclass(frozen=True)
class SimPO:
    """Simple preference optimization (Meng 2024): means over tokens, no reference."""

    beta: Positive
    target_margin: NonNegative


@dataclass(frozen=True)
class ORPO:
    """Odds-ratio preference optimization (Hong 2024), with cross-entropy; no reference."""

    weight: Positive


@dataclass(frozen=True)
class PlackettLuce:
    """DPO on whole rankings (Rafailov 2023, eq. 18)."""

    beta: Positive


@dataclass(frozen=True)
class KTO:
    """Kahneman-Tversky optimization (Ethayarajh 2024) on thumbs.

    `balance` raises the weight of the rarer kind (`vla.preference.kto.balanced_weights`).
    """

    beta: Positive
    balance: bool


Objective = DPO | IPO | SimPO | ORPO | PlackettLuce | KTO


def make_objective(name: str, **settings: float | bool) -> Objective:
    """An objective from its name in `OBJECTIVES` and its settings.

    Raises:
        ValueError: the name is unknown.
    """
    kind = load_target(find_target(OBJECTIVES, "preference", name))
    objective: Objective = kind(**settings)
    return objective


def needs_reference(objective: Objective) -> bool:
    """True for losses that use log-probabilities of the policy before training."""
    return not isinstance(objective, SimPO | ORPO)


def uses_margin(objective: Objective) -> bool:
    """True for losses that use a margin for each pair, the column `margin` of a file."""
    return isinstance(objective, DPO)


def comparison_terms(
    objective: DPO | IPO | SimPO | ORPO | PlackettLuce,
    logprobs: Float[Tensor, "B K"],
    lengths: Int[Tensor, "B K"],
    ref_logprobs: Float[Tensor, "B K"],
    present: Bool[Tensor, "B K"],
    margins: Float[Tensor, "B"] | float = 0.0,
) -> Float[Tensor, "B"]:
    """The loss of each comparison; columns run from best to worst.

    `logprobs` and `ref_logprobs` are summed over tokens (nats). Losses on pairs use the first and
    the last present column. `ref_logprobs` is ignored where no reference is needed, `margins` where
    the objective uses none (`uses_margin`).
    """
    if isinstance(objective, PlackettLuce):
        return plackett_luce_terms(objective.beta * (logprobs - ref_logprobs), present)
    last = present.sum(1, keepdim=True) - 1

    def best_and_worst(values: Tensor) -> tuple[Tensor, Tensor]:
        return values[:, 0], values.gather(1, last).squeeze(1)

    num_tokens = lengths.clamp(min=1)  # absent completions have none
    chosen, rejected = best_and_worst(logprobs)
    ref_chosen, ref_rejected = best_and_worst(ref_logprobs)
    mean_chosen, mean_rejected = best_and_worst(logprobs / num_tokens)
    match objective:
        case DPO(beta, label_smoothing):
            return dpo_terms(
                chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing, margins
            )
        case IPO(beta, True):
            mean_ref_chosen, mean_ref_rejected = best_and_worst(ref_logprobs / num_tokens)
            return ipo_terms(mean_chosen, mean_rejected, mean_ref_chosen, mean_ref_rejected, beta)
        case IPO(beta, _):
            return ipo_terms(chosen, rejected, ref_chosen, ref_rejected, beta)
        case SimPO(beta, target_margin):
            return simpo_terms(mean_chosen, mean_rejected, beta, target_margin)
        case ORPO(weight):
            return orpo_terms(mean_chosen, mean_rejected, weight)
        case other:
            assert_never(other)
