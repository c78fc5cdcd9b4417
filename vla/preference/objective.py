"""The preference losses by name, over comparisons of any length: what each needs, and its terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_never

from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.preference.listwise import plackett_luce_terms
from vla.preference.pairwise import dpo_terms, ipo_terms, orpo_terms, simpo_terms


@dataclass(frozen=True)
class DPO:
    """Direct preference optimization; `label_smoothing` above 0 is cDPO."""

    beta: float
    label_smoothing: float


@dataclass(frozen=True)
class IPO:
    """Identity preference optimization; `per_token` compares means over tokens instead of sums."""

    beta: float
    per_token: bool


@dataclass(frozen=True)
class SimPO:
    """Simple preference optimization: means over tokens, no reference."""

    beta: float
    target_margin: float


@dataclass(frozen=True)
class ORPO:
    """Odds-ratio preference optimization: cross-entropy on the chosen one besides, no reference."""

    weight: float


@dataclass(frozen=True)
class PlackettLuce:
    """DPO on whole rankings."""

    beta: float


@dataclass(frozen=True)
class KTO:
    """Kahneman-Tversky optimization on thumbs. `balance` weighs the rarer kind up
    (`thumbs.balanced_weights`)."""

    beta: float
    balance: bool


Objective = DPO | IPO | SimPO | ORPO | PlackettLuce | KTO
KINDS: dict[str, type[Any]] = {
    "dpo": DPO,
    "ipo": IPO,
    "simpo": SimPO,
    "orpo": ORPO,
    "plackett_luce": PlackettLuce,
    "kto": KTO,
}


def make_objective(name: str, **settings: Any) -> Objective:
    """An objective from its name and settings."""
    return KINDS[name](**settings)


def needs_reference(objective: Objective) -> bool:
    """Whether the loss compares with the policy before training."""
    return not isinstance(objective, SimPO | ORPO)


def uses_margin(objective: Objective) -> bool:
    """Whether the loss asks for a pair's own margin, the column `margin` of a file."""
    return isinstance(objective, DPO)


def comparison_terms(
    objective: DPO | IPO | SimPO | ORPO | PlackettLuce,
    logprobs: Float[Tensor, "B K"],
    lengths: Int[Tensor, "B K"],
    ref_logprobs: Float[Tensor, "B K"],
    present: Bool[Tensor, "B K"],
    margins: Float[Tensor, "B"] | float = 0.0,
) -> Float[Tensor, "B"]:
    """A term for each comparison; columns from best to worst, log-probabilities summed over tokens.

    Losses on pairs take the first and the last that is present. `ref_logprobs` is not read where no
    reference is needed, `margins` where the objective uses none (`uses_margin`).
    """
    if isinstance(objective, PlackettLuce):
        return plackett_luce_terms(objective.beta * (logprobs - ref_logprobs), present)
    last = present.sum(1, keepdim=True) - 1

    def ends(values: Tensor) -> tuple[Tensor, Tensor]:
        return values[:, 0], values.gather(1, last).squeeze(1)

    means = ends(logprobs / lengths.clamp(min=1))
    match objective:
        case DPO(beta, label_smoothing):
            return dpo_terms(*ends(logprobs), *ends(ref_logprobs), beta, label_smoothing, margins)
        case IPO(beta, True):
            return ipo_terms(*means, *ends(ref_logprobs / lengths.clamp(min=1)), beta)
        case IPO(beta, _):
            return ipo_terms(*ends(logprobs), *ends(ref_logprobs), beta)
        case SimPO(beta, target_margin):
            return simpo_terms(*means, beta, target_margin)
        case ORPO(weight):
            return orpo_terms(*means, weight)
        case other:
            assert_never(other)
