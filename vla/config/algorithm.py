"""The reinforcement-learning algorithms and their settings, field for field those of the dataclasses in vla/rl."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vla.config.section import Count, Fraction, NonNegative, Positive, Section

ClipLow = Annotated[float, Field(ge=0, le=1)]
DualClip = Annotated[float, Field(gt=1)]
Reduction = Literal["token", "sequence", "constant"]
Level = Literal["draw", "decision"]
KLEstimator = Literal["k1", "k2", "k3"]


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
    entropy_coefficient: float


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
    kl_coefficient: NonNegative
    kl_estimator: KLEstimator
    kl_placement: Literal["reward", "loss"]
    entropy_coefficient: float


Algorithm = Annotated[Grpo | Ppo, Field(discriminator="name")]

GROUP_ALGORITHMS = frozenset({"grpo"})
"""Algorithms that compare the trajectories of a group, so that a group of one says nothing."""
