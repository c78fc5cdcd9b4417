"""Per-draw terms of policy, value and entropy losses. No reduction here: `Batch.weights` holds it.

`A` advantage, r = exp(log pi - log pi_old) ratio. Terms are minimised. All shapes broadcast against
[B, L].
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.rl.batch import Batch, LossOutput
from vla.rl.choices import KLEstimator, Level
from vla.rl.kl import LOG_RATIO_LIMIT, kl_terms
from vla.types import ActionScores


def draw_log_ratio(
    logprobs: Float[Tensor, "B L"], old_logprobs: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """log pi - log pi_old of each draw, clamped to +-20; 0 where the policy did not choose."""
    difference = torch.where(mask, logprobs, 0.0) - torch.where(mask, old_logprobs, 0.0)
    return difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def decision_log_ratio(
    logprobs: Float[Tensor, "B L"], old_logprobs: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B 1"]:
    """Log-ratio of the whole decision: the sum over its draws, clamped to +-20."""
    difference = torch.where(mask, logprobs, 0.0) - torch.where(mask, old_logprobs, 0.0)
    return difference.sum(1, keepdim=True).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def mean_log_ratio(
    logprobs: Float[Tensor, "B L"], old_logprobs: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B 1"]:
    """Log of GSPO's sequence ratio: the mean log-ratio over a decision's draws (Zheng 2025, eq.
    7)."""
    difference = torch.where(mask, logprobs, 0.0) - torch.where(mask, old_logprobs, 0.0)
    mean = difference.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return mean.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def log_ratio_at(
    level: Level,
    logprobs: Float[Tensor, "B L"],
    old_logprobs: Float[Tensor, "B L"],
    mask: Bool[Tensor, "B L"],
) -> Float[Tensor, "B _"]:
    """The log-ratio of each draw or of each decision."""
    if level == "draw":
        return draw_log_ratio(logprobs, old_logprobs, mask)
    return decision_log_ratio(logprobs, old_logprobs, mask)


def reinforce_terms(
    logprobs: Float[Tensor, "B L"], advantages: Float[Tensor, "B _"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """-A log pi (Williams 1992)."""
    return -advantages * torch.where(mask, logprobs, 0.0)


def clipped_terms(
    log_ratio: Float[Tensor, "B _"],
    advantages: Float[Tensor, "B _"],
    clip_low: float | Float[Tensor, "L"],
    clip_high: float | Float[Tensor, "L"],
    dual_clip: float | None = None,
) -> tuple[Float[Tensor, "B _"], Bool[Tensor, "B _"]]:
    """max(-A r, -A clip(r, 1 - low, 1 + high)) (Schulman 2017, eq. 7; asymmetric: Yu 2025), and
    the mask of active clips.

    The clip may differ per draw. With a dual clip c, A < 0 gives min(that, -A c) (Ye 2020), which
    bounds the loss of a bad draw.
    """
    ratio = log_ratio.exp()
    low = torch.as_tensor(1 - clip_low)
    high = torch.as_tensor(1 + clip_high)
    free = -advantages * ratio
    held = -advantages * torch.clamp(ratio, low, high)
    terms = torch.maximum(free, held)
    clipped = held > free
    if dual_clip is not None:
        limit = -advantages * dual_clip
        beyond = (advantages < 0) & (terms > limit)
        terms = torch.where(beyond, limit, terms)
        clipped = clipped | beyond
    return terms, clipped


def clip_shares(num_draws: int, first: float) -> Float[Tensor, "L"]:
    """Fraction of the clip per draw, from `first` at a decision's first draw to 1 at its last
    (DPPO, Ren et al. 2024): first + (1 - first) (e^(3 j / (L - 1)) - 1) / (e^3 - 1). The first
    steps of a denoising chain move all later ones.
    """
    place = torch.linspace(0, 1, num_draws) if num_draws > 1 else torch.ones(num_draws)
    return first + (1 - first) * torch.expm1(3 * place) / math.expm1(3)


def cispo_terms(
    logprobs: Float[Tensor, "B L"],
    log_ratio: Float[Tensor, "B L"],
    advantages: Float[Tensor, "B _"],
    mask: Bool[Tensor, "B L"],
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """-sg(clip(r, 1 - low, 1 + high)) A log pi (MiniMax 2025, eq. 4-5): every draw keeps its
    gradient, its weight is bounded.

    TRL clamps at the absolute value epsilon_high; ours is 1 + high.
    """
    ratio = log_ratio.detach().exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return weight * reinforce_terms(logprobs, advantages, mask), weight != ratio


def importance_weights(
    proximal_logprobs: Float[Tensor, "R L"],
    behaviour_logprobs: Float[Tensor, "R L"],
    mask: Bool[Tensor, "R L"],
    cap: float,
    level: Level,
) -> Float[Tensor, "R _"]:
    """min(pi_proximal / pi_behaviour, cap) per draw, or per decision as the product over its draws;
    1 where not chosen.

    Corrects for draws made by a stale or differently computed policy (Espeholt 2018, eq. 1; Hilton
    2021, decoupled PPO).
    """
    return log_ratio_at(level, proximal_logprobs, behaviour_logprobs, mask).exp().clamp(max=cap)


def value_terms(
    values: Float[Tensor, "B *L"],
    old_values: Float[Tensor, "B *L"],
    returns: Float[Tensor, "B *L"],
    clip: float | None,
) -> Float[Tensor, "B *L"]:
    """0.5 max((v - R)^2, (clip(v, v_old +- c) - R)^2); 0.5 (v - R)^2 without a clip (Schulman 2016;
    OpenAI baselines).
    """
    free = (values - returns).square()
    if clip is None:
        return 0.5 * free
    held = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum(free, (held - returns).square())


def combine(
    batch: Batch,
    scores: ActionScores,
    terms: Float[Tensor, "B _"],
    clipped: Bool[Tensor, "B _"] | None = None,
    *,
    kl_coefficient: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    kl_cap: float | None = None,
    entropy_coefficient: float = 0.0,
) -> LossOutput:
    """Rows of sum(weights (terms + beta KL - c entropy)): one reduction for all three, folded into
    the weights.

    `check_kl_cap` bounds the estimate of a draw (10 in verl, NeMo-RL and OpenRLHF); beyond it no
    gradient flows.
    """
    counted = batch.weights != 0
    metrics: dict[str, Tensor] = {}
    if clipped is not None:
        metrics["clip_fraction"] = (clipped & counted).sum()
    if kl_coefficient:
        assert batch.ref_logprobs is not None, (
            "update() refuses an algorithm with a KL penalty and no reference"
        )
        penalty = kl_terms(
            draw_log_ratio(scores.logprobs, batch.ref_logprobs, batch.mask), kl_estimator
        )
        if kl_cap is not None:
            penalty = penalty.clamp(-kl_cap, kl_cap)
        terms = terms + kl_coefficient * penalty
        metrics["kl_reference"] = torch.where(counted, penalty.detach(), 0.0).sum()
    if scores.entropy is not None:
        entropy = torch.where(counted, scores.entropy, 0.0)
        metrics["entropy"] = entropy.detach().sum()
        if entropy_coefficient:
            terms = terms - entropy_coefficient * entropy
    elif entropy_coefficient:
        raise ValueError(
            f"entropy_coefficient ({entropy_coefficient}) needs a policy whose scores hold an "
            "entropy: set it to 0"
        )
    weighted = torch.where(counted, batch.weights * terms, 0.0)
    return LossOutput(policy=weighted.sum(1), metrics=metrics)
