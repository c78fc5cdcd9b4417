"""KL divergence from the reference policy: estimators, and the adaptive coefficient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.rl.choices import KLEstimator

LOG_RATIO_LIMIT = 20.0
"""e^20 = 4.9e8: a log-ratio beyond it is an outlier, and its exponential would overflow."""


def kl_terms(log_ratio: Float[Tensor, "*shape"], estimator: KLEstimator) -> Float[Tensor, "*shape"]:
    """Estimates of KL(pi || ref) from draws of pi, with d = log pi - log ref (Schulman 2020,
    "Approximating KL divergence").

        k1 = d        unbiased, may be negative
        k2 = d^2 / 2  biased, its gradient is that of KL(pi || ref)
        k3 = e^-d - 1 + d   unbiased and never negative, low variance

    As a *loss*: the gradient of k1 is that of log pi, whatever the reference is, with expectation
    0: it restrains nothing. k2 pulls towards the reference with the right gradient; k3's gradient
    is that of KL(ref || pi). In the *reward* no gradient flows and k1 is the usual choice.
    """
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    return torch.exp(-log_ratio) - 1 + log_ratio


def masked_kl(
    logprobs: Float[Tensor, "R L"],
    ref_logprobs: Float[Tensor, "R L"],
    mask: Bool[Tensor, "R L"],
    estimator: KLEstimator,
) -> Float[Tensor, "R L"]:
    """Per-draw KL of the acting policy from the reference, 0 where the policy did not choose;
    log-ratio clamped to +-20.
    """
    difference = torch.where(mask, logprobs, 0.0) - torch.where(mask, ref_logprobs, 0.0)
    return kl_terms(difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT), estimator)


@dataclass(frozen=True)
class AdaptiveKL:
    """Controller that keeps the KL of a trajectory (nats, summed over its draws) near `target`
    (Ziegler 2019, section 2.2).

        beta <- beta (1 + clip(KL / target - 1, -.2, .2) n / horizon)

    `n` is the number of trajectories. OpenAI's values: beta .15 to start, target 6, horizon 10000.
    """

    coefficient: float
    target: float
    horizon: float

    def __post_init__(self) -> None:
        for setting in ("target", "horizon"):
            if not getattr(self, setting) > 0:
                raise ValueError(
                    f"kl_{setting} ({getattr(self, setting)}) must be greater than 0: 6 and 10000 "
                    "are usual"
                )

    def update(self, kl: float, num_trajectories: int) -> AdaptiveKL:
        """The controller after `num_trajectories` trajectories with this mean KL."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return AdaptiveKL(
            self.coefficient * (1 + error * num_trajectories / self.horizon),
            self.target,
            self.horizon,
        )
