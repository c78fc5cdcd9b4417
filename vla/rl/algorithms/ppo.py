"""Proximal Policy Optimization with a critic (Schulman 2017), as RLHF uses it (Ziegler 2019,
Stiennon 2020, Ouyang 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vla.collectives import ReduceSum, single_process, sum_counts
from vla.ranges import Count, Fraction, NonNegative, Positive
from vla.rl import validation as checks
from vla.rl.advantages import bootstrap_values, generalized_advantages, whiten
from vla.rl.batch import Batch, LossOutput, reduction_weights
from vla.rl.choices import (
    Along,
    DualClip,
    EntropyCoefficient,
    KLEstimator,
    KLPlacement,
    Level,
    Reduction,
)
from vla.rl.losses import clip_shares, clipped_terms, combine, log_ratio_at
from vla.rl.rewards import (
    critic_loss_rows,
    explained_variance,
    position_weights,
    rewards_with_kl,
    to_advantages,
)
from vla.types import ActionScores, Rollout


@dataclass(frozen=True)
class PPO:
    """Clipped surrogate with GAE, a clipped value loss, and optionally a KL penalty in the reward
    or in the loss.

    The shape of the critic's values sets the axis of GAE: [R] along decisions (robots, usually
    gamma .99), [R, L] along draws (text, gamma 1). Advantages are whitened over the global batch,
    not over a minibatch.

    DPPO (Ren et al. 2024) is PPO on a denoising chain whose first draws count for less:
    `clip_first_draw` is their share of the clip (`clip_shares`), and an advantage is multiplied by
    `draw_discount` for every draw that follows.
    """

    clip_low: Fraction
    clip_high: NonNegative
    gamma: Fraction
    gae_lambda: Fraction
    value_coefficient: Positive
    value_clip: Positive | None = None
    dual_clip: DualClip | None = None
    normalize_advantages: bool = True
    whiten_rewards: bool = False
    reduction: Reduction = "token"
    max_length: Count | None = None
    ratio_level: Level = "draw"
    clip_first_draw: Fraction = 1.0
    draw_discount: Fraction = 1.0
    kl_coefficient: NonNegative = 0.0
    kl_estimator: KLEstimator = "k1"
    kl_placement: KLPlacement = "reward"
    entropy_coefficient: EntropyCoefficient = 0.0
    needs_values: ClassVar[bool] = True
    needs_groups: ClassVar[bool] = False
    uses_ratio: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.check_clip_range(self.clip_low, self.clip_high, self.dual_clip)
        checks.check_discount(self.gamma, self.gae_lambda)
        checks.check_positive(
            "value_coefficient",
            self.value_coefficient,
            ".5 is usual; an algorithm without a critic is not ppo",
        )
        if self.value_clip is not None:
            checks.check_positive(
                "value_clip", self.value_clip, ".2 is usual, null switches it off"
            )
        checks.check_reduction(self.reduction, self.max_length)
        checks.check_one_of("ratio_level", self.ratio_level, ("draw", "decision"))
        checks.check_within(
            "clip_first_draw",
            self.clip_first_draw,
            0.0,
            1.0,
            "it is a share of the clip; 1 is plain PPO",
        )
        checks.check_within(
            "draw_discount", self.draw_discount, 0.0, 1.0, ".99 is DPPO's, 1 is plain PPO"
        )
        checks.check_per_draw_settings(self.ratio_level, self.clip_first_draw, self.draw_discount)
        checks.check_one_of("kl_placement", self.kl_placement, ("reward", "loss"))
        checks.check_penalty(self.kl_coefficient, self.kl_estimator, self.entropy_coefficient)

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0

    def prepare(
        self,
        rollout: Rollout,
        ref_logprobs: Float[Tensor, "R L"] | None = None,
        reduce_sum: ReduceSum = single_process,
    ) -> Batch:
        """GAE along decisions or draws, whitened; trajectories with a NaN reward leave the
        denominators."""
        if rollout.values is None:
            raise ValueError(
                "rollout.values (null): algorithm ppo needs a policy with a critic; choose one or "
                "use grpo"
            )
        in_reward = self.kl_coefficient if self.kl_placement == "reward" else 0.0
        along: Along = "draw" if rollout.values.dim() == 2 else "decision"
        credit = rewards_with_kl(rollout, along, ref_logprobs, in_reward, self.kl_estimator)
        rewards = credit.rewards
        if self.whiten_rewards:
            rewards = whiten(rewards, credit.counted, shift_mean=False, reduce_sum=reduce_sum)
        bootstrap = bootstrap_values(rollout.terminated | ~credit.keep, rollout.final_values)
        raw, returns = generalized_advantages(
            rewards,
            rollout.values,
            credit.counted,
            rollout.trajectory,
            bootstrap,
            self.gamma,
            self.gae_lambda,
        )
        advantages = (
            whiten(raw, credit.counted, reduce_sum=reduce_sum) if self.normalize_advantages else raw
        )
        fit = explained_variance(rollout.values, returns, credit.counted, reduce_sum)
        return Batch(
            observation=rollout.observation,
            trace=rollout.trace,
            old_logprobs=rollout.logprobs,
            mask=rollout.mask,
            advantages=self._discounted(to_advantages(advantages), rollout.mask.shape[1]),
            weights=reduction_weights(
                rollout.mask,
                rollout.trajectory,
                credit.keep,
                self.reduction,
                self.max_length,
                reduce_sum,
            ),
            ref_logprobs=ref_logprobs,
            old_values=rollout.values,
            returns=returns,
            value_weights=self.value_coefficient * position_weights(credit.counted, reduce_sum),
            metrics={**sum_counts(credit.metrics, reduce_sum), "explained_variance": fit},
        )

    def loss(self, batch: Batch, scores: ActionScores) -> LossOutput:
        """Clipped surrogate and entropy bonus as the policy's part, clipped squared error as the
        critic's."""
        log_ratio = log_ratio_at(self.ratio_level, scores.logprobs, batch.old_logprobs, batch.mask)
        low: float | Tensor = self.clip_low
        high: float | Tensor = self.clip_high
        if self.clip_first_draw < 1:
            shares = clip_shares(log_ratio.shape[1], self.clip_first_draw).to(log_ratio)
            low = low * shares
            high = high * shares
        terms, clipped = clipped_terms(log_ratio, batch.advantages, low, high, self.dual_clip)
        policy = combine(
            batch,
            scores,
            terms,
            clipped,
            kl_coefficient=self.kl_coefficient if self.kl_placement == "loss" else 0.0,
            kl_estimator=self.kl_estimator,
            entropy_coefficient=self.entropy_coefficient,
        )
        return replace(policy, value=critic_loss_rows(batch, scores, self.value_clip))

    def _discounted(self, advantages: Float[Tensor, "R _"], num_draws: int) -> Float[Tensor, "R _"]:
        """Multiply advantages by `draw_discount` for each later draw of the same decision."""
        if self.draw_discount == 1:
            return advantages
        return advantages * self.draw_discount ** torch.arange(num_draws - 1, -1, -1)
