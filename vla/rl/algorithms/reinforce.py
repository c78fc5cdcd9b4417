"""REINFORCE (Williams 1992), with reward-to-go, and with a baseline (Sutton and Barto 2018, section
13.4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vla.collectives import ReduceSum, single_process, sum_counts
from vla.ranges import Count, Fraction, NonNegative, Positive
from vla.rl import validation as checks
from vla.rl.advantages import bootstrap_values, generalized_advantages, rewards_to_go, whiten
from vla.rl.batch import Batch, LossOutput, reduction_weights
from vla.rl.choices import Along, EntropyCoefficient, KLEstimator, KLPlacement, Reduction
from vla.rl.losses import combine, reinforce_terms
from vla.rl.rewards import (
    PositionRewards,
    critic_loss_rows,
    explained_variance,
    position_weights,
    rewards_with_kl,
    to_advantages,
)
from vla.types import ActionScores, Rollout


@dataclass(frozen=True)
class REINFORCE:
    """-A log pi, A = discounted reward-to-go - baseline. On-policy: one epoch and one minibatch per
    rollout, without a ratio.

    `baseline`: none; the mean reward-to-go of the batch; or a critic, trained by squared error
    (`value_coefficient`), which also bootstraps truncated trajectories. `along` is the axis of
    rewards-to-go: decisions or draws.
    """

    gamma: Fraction
    along: Along
    baseline: Literal["none", "mean", "critic"] = "none"
    value_coefficient: Positive | None = None
    normalize_advantages: bool = False
    reduction: Reduction = "token"
    max_length: Count | None = None
    kl_coefficient: NonNegative = 0.0
    kl_estimator: KLEstimator = "k1"
    entropy_coefficient: EntropyCoefficient = 0.0
    kl_placement: ClassVar[KLPlacement | None] = "reward"
    needs_groups: ClassVar[bool] = False
    uses_ratio: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.check_discount(self.gamma)
        checks.check_one_of("along", self.along, ("decision", "draw"))
        checks.check_one_of("baseline", self.baseline, ("none", "mean", "critic"))
        if (self.value_coefficient is not None) != (self.baseline == "critic"):
            raise ValueError(
                f"value_coefficient ({checks.format_value(self.value_coefficient)}) belongs to "
                f"baseline=critic, and baseline is {self.baseline}: give both or neither"
            )
        checks.check_reduction(self.reduction, self.max_length)
        checks.check_penalty(self.kl_coefficient, self.kl_estimator, self.entropy_coefficient)

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0

    @property
    def needs_values(self) -> bool:
        return self.baseline == "critic"

    def prepare(
        self,
        rollout: Rollout,
        ref_logprobs: Float[Tensor, "R L"] | None = None,
        reduce_sum: ReduceSum = single_process,
    ) -> Batch:
        """Rewards-to-go (with KL in the reward) minus the baseline."""
        credit = rewards_with_kl(
            rollout, self.along, ref_logprobs, self.kl_coefficient, self.kl_estimator
        )
        weights = reduction_weights(
            rollout.mask,
            rollout.trajectory,
            credit.keep,
            self.reduction,
            self.max_length,
            reduce_sum,
        )
        batch = Batch(
            observation=rollout.observation,
            trace=rollout.trace,
            old_logprobs=rollout.logprobs,
            mask=rollout.mask,
            advantages=torch.zeros_like(rollout.logprobs),
            weights=weights,
            ref_logprobs=ref_logprobs,
            metrics=sum_counts(credit.metrics, reduce_sum),
        )
        if self.baseline == "critic":
            advantages, batch = self._against_critic(rollout, credit, batch, reduce_sum)
        else:
            advantages = self._against_mean(rollout, credit, reduce_sum)
        if self.normalize_advantages:
            advantages = whiten(advantages, credit.counted, reduce_sum=reduce_sum)
        return replace(batch, advantages=to_advantages(advantages))

    def _against_mean(
        self, rollout: Rollout, credit: PositionRewards, reduce_sum: ReduceSum
    ) -> Float[Tensor, "R *L"]:
        """Rewards-to-go minus nothing, or minus their mean over the counted positions of the global
        batch."""
        counted = credit.counted
        to_go = rewards_to_go(
            credit.rewards, counted, rollout.trajectory, rollout.num_trajectories, self.gamma
        )
        if self.baseline == "none":
            return to_go
        mean = reduce_sum((position_weights(counted, reduce_sum).double() * to_go.double()).sum())
        return torch.where(counted, to_go - mean.to(to_go.dtype), torch.zeros_like(to_go))

    def _against_critic(
        self, rollout: Rollout, credit: PositionRewards, batch: Batch, reduce_sum: ReduceSum
    ) -> tuple[Float[Tensor, "R *L"], Batch]:
        """Rewards-to-go minus the critic's values, and the batch with the critic's targets."""
        if rollout.values is None or (rollout.values.dim() == 2) != (self.along == "draw"):
            raise ValueError(
                f"rollout.values must hold one value a {self.along} for baseline 'critic' with "
                f"along {self.along!r}: "
                "give the policy such a critic, or change along or baseline"
            )
        assert self.value_coefficient is not None
        bootstrap = bootstrap_values(rollout.terminated | ~credit.keep, rollout.final_values)
        advantages, returns = generalized_advantages(
            credit.rewards,
            rollout.values,
            credit.counted,
            rollout.trajectory,
            bootstrap,
            self.gamma,
            1.0,
        )
        fit = explained_variance(rollout.values, returns, credit.counted, reduce_sum)
        return advantages, replace(
            batch,
            old_values=rollout.values,
            returns=returns,
            value_weights=self.value_coefficient * position_weights(credit.counted, reduce_sum),
            metrics={**batch.metrics, "explained_variance": fit},
        )

    def loss(self, batch: Batch, scores: ActionScores) -> LossOutput:
        """-A log pi and entropy bonus; the critic's squared error apart."""
        terms = reinforce_terms(scores.logprobs, batch.advantages, batch.mask)
        output = combine(batch, scores, terms, entropy_coefficient=self.entropy_coefficient)
        return (
            replace(output, value=critic_loss_rows(batch, scores, None))
            if self.baseline == "critic"
            else output
        )
