"""The sections that robot and text runs share: adapters, reinforcement learning, evaluation starts,
the run itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from vla.config.section import Section
from vla.ranges import (
    Count,
    CountOrZero,
    DeviceName,
    LearningRate,
    Name,
    NonNegative,
    NumThreads,
    Positive,
    PositiveFraction,
    Rows,
    Schedule,
    Seconds,
    Seed,
    Share,
    Size,
    SmallCount,
    SmallCountOrZero,
    UpdatesAhead,
    WeightDecay,
    WorkerCount,
    check_unique,
)

Adapt = Literal["weights", "backbone", "lora", "head", "noise", "residual"]
"""What RL moves: weights of the policy, or a small policy on top of it (`noise`, `residual`)."""
ADAPTERS = ("noise", "residual")
"""The small policies, which leave every weight of the policy frozen."""


class Lora(Section):
    """A low-rank adapter: its rank, and the scale alpha / rank of its output."""

    rank: Size
    alpha: Positive


class Rl(Section):
    """Rollouts and updates of reinforcement learning, for robots and text."""

    num_iterations: CountOrZero
    num_start_states: Rows
    group_size: SmallCount
    epochs: SmallCount
    num_minibatches: Count
    micro_batch_rows: Count
    learning_rate: LearningRate
    adapt: Adapt
    residual_scale: Positive
    noise_bound: Positive
    critic: Literal["shared", "separate"]
    critic_learning_rate: LearningRate
    optimizer: Literal["adamw", "muon", "sgd"]
    muon_learning_rate: LearningRate
    weight_decay: WeightDecay
    schedule: Schedule
    warmup_iterations: CountOrZero | None
    max_grad_norm: Positive
    target_kl: Positive | None
    target_step_kl: Positive | None
    ema_decay: Share | None
    num_critic_warmup_iterations: CountOrZero
    importance_cap: Positive | None
    importance_level: Literal["draw", "decision"]
    max_resamples: SmallCountOrZero
    num_branches: SmallCountOrZero
    branch_fraction: PositiveFraction
    branch_discount: PositiveFraction
    num_branch_warmup_iterations: SmallCount
    greedy_branching_every: Count | None
    normalize_rewards: bool
    reference: Literal["auto", "copy", "adapter_off", "rollout"]
    reference_refresh_every: Count | None
    kl_target: Positive | None
    kl_horizon: Positive | None
    evaluate_every: Count
    load_best_at_end: bool
    target_success: PositiveFraction | None
    patience: SmallCount | None
    max_idle_iterations: SmallCount | None
    max_decisions: Count | None
    max_seconds: Seconds | None
    workers: WorkerCount
    worker_resources: dict[Name, NonNegative]
    async_rollouts: UpdatesAhead

    @property
    def num_warmup_iterations(self) -> int:
        """Iterations over which the learning rate rises."""
        return (
            round(self.num_iterations / 100)
            if self.warmup_iterations is None
            else self.warmup_iterations
        )


class Seeds(Section):
    """The seeds `first` to `last`, both included."""

    first: Seed
    last: Seed


class Evaluation(Section):
    """Held-out starts: how many, and the seed ranges of training, validation and test."""

    num_starts: Rows
    sampled: bool
    num_validation_starts: Rows
    train_seeds: Seeds
    validation_seeds: Seeds
    eval_seeds: Seeds
    num_videos: SmallCountOrZero


class Train(Section):
    """Settings of all stages: seed, device, checkpoints and metric trackers."""

    seed: Seed
    precision: Literal["auto", "fp32", "bf16"]
    device: DeviceName
    num_threads: NumThreads
    checkpoint_every: Count
    checkpoint_seconds: Positive
    keep_checkpoints: SmallCount
    tensorboard: bool
    trackers: Annotated[tuple[Literal["trackio", "wandb"], ...], AfterValidator(check_unique)]
