"""The reinforcement-learning algorithms and their settings, field for field those of the
dataclasses in vla/rl.

What a value must be beyond its type is said there, once, and asked at load (`vla.rl.checks`, no
tensors involved).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vla.config.section import Count, CountOrZero, Fraction, NonNegative, Positive, Section

ClipLow = Fraction
DualClip = Annotated[float, Field(gt=1, le=1000)]
Entropy = Annotated[NonNegative, Field(le=10)]
Reduction = Literal["token", "sequence", "constant"]
Level = Literal["draw", "decision"]
Along = Literal["decision", "draw"]
KLEstimator = Literal["k1", "k2", "k3"]


class Reinforce(Section):
    name: Literal["reinforce"]
    gamma: Fraction
    along: Along
    baseline: Literal["none", "mean", "critic"]
    value_coefficient: Positive | None
    normalize_advantages: bool
    reduction: Reduction
    max_length: Count | None
    kl_coefficient: NonNegative
    kl_estimator: KLEstimator
    entropy_coefficient: Entropy


class ReinforcePlusPlus(Section):
    name: Literal["reinforce_plus_plus"]
    clip_low: ClipLow
    clip_high: NonNegative
    gamma: Fraction
    along: Along
    baseline: Literal["none", "group"]
    kl_coefficient: NonNegative
    entropy_coefficient: Entropy


class Ppo(Section):
    name: Literal["ppo"]
    clip_low: ClipLow
    clip_high: NonNegative
    gamma: Fraction
    gae_lambda: Fraction
    value_coefficient: Positive
    value_clip: Positive | None
    dual_clip: DualClip | None
    normalize_advantages: bool
    whiten_rewards: bool
    reduction: Reduction
    max_length: Count | None
    ratio_level: Level
    clip_first_draw: Fraction
    draw_discount: Fraction
    kl_coefficient: NonNegative
    kl_estimator: KLEstimator
    kl_placement: Literal["reward", "loss"]
    entropy_coefficient: Entropy


class Grpo(Section):
    name: Literal["grpo"]
    clip_low: ClipLow
    clip_high: NonNegative
    scale: Literal["std", "none"]
    reduction: Reduction
    max_length: Count | None
    ratio_level: Level
    dual_clip: DualClip | None
    kl_coefficient: NonNegative
    kl_estimator: KLEstimator
    kl_cap: Positive | None
    entropy_coefficient: Entropy
    keep_equal_groups: bool


class DrGrpo(Section):
    name: Literal["dr_grpo"]
    clip_low: ClipLow
    clip_high: NonNegative
    max_length: Count | None
    entropy_coefficient: Entropy


class Dapo(Section):
    name: Literal["dapo"]
    clip_low: ClipLow
    clip_high: NonNegative
    overlong_buffer: CountOrZero
    max_length: Count | None
    entropy_coefficient: Entropy


class Gspo(Section):
    name: Literal["gspo"]
    clip_low: ClipLow
    clip_high: NonNegative
    kl_coefficient: NonNegative
    kl_estimator: KLEstimator
    kl_cap: Positive | None
    entropy_coefficient: Entropy
    keep_equal_groups: bool


class Cispo(Section):
    name: Literal["cispo"]
    clip_low: ClipLow
    clip_high: NonNegative
    entropy_coefficient: Entropy


class Rloo(Section):
    name: Literal["rloo"]
    clip_low: ClipLow
    clip_high: NonNegative
    kl_coefficient: NonNegative
    entropy_coefficient: Entropy


class MaxRl(Section):
    name: Literal["maxrl"]
    clip_low: ClipLow
    clip_high: NonNegative
    reduction: Reduction
    max_length: Count | None
    entropy_coefficient: Entropy


Algorithm = Annotated[
    Reinforce | ReinforcePlusPlus | Ppo | Grpo | DrGrpo | Dapo | Gspo | Cispo | Rloo | MaxRl,
    Field(discriminator="name"),
]


def needs_groups(algorithm: Algorithm) -> bool:
    """Whether the algorithm compares the trajectories of a group, so that a group of one says
    nothing."""
    if isinstance(algorithm, ReinforcePlusPlus):
        return algorithm.baseline == "group"
    return not isinstance(algorithm, Reinforce | Ppo)


def needs_critic(algorithm: Algorithm) -> bool:
    """Whether the algorithm asks the policy for values."""
    return isinstance(algorithm, Ppo) or (
        isinstance(algorithm, Reinforce) and algorithm.baseline == "critic"
    )
