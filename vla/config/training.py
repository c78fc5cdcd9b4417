"""The sections that robot and text runs share: adapters, reinforcement learning, evaluation starts, the run itself."""

from __future__ import annotations

from typing import Literal

from vla.config.section import Count, CountOrZero, Fraction, NonNegative, Positive, Schedule, Section


class Lora(Section):
    rank: Count
    alpha: Positive


class Rl(Section):
    num_iterations: CountOrZero
    starts_per_iteration: Count
    group_size: Count
    epochs: Count
    num_minibatches: Count
    micro_batch_rows: Count
    learning_rate: Positive
    critic: Literal["shared", "separate"]
    critic_learning_rate: Positive
    optimizer: Literal["adamw", "muon", "sgd"]
    muon_learning_rate: Positive
    weight_decay: NonNegative
    schedule: Schedule
    warmup_iterations: CountOrZero
    max_grad_norm: Positive
    target_kl: Positive | None
    step_kl: Positive | None
    average_decay: Fraction | None
    critic_warmup_iterations: CountOrZero
    importance_cap: Positive | None
    importance_level: Literal["draw", "decision"]
    max_refills: CountOrZero
    num_branches: CountOrZero
    branch_share: Positive
    branch_discount: Positive
    branch_warmup: Count
    greedy_every: Count | None
    normalize_rewards: bool
    reference: Literal["auto", "copy", "adapter_off", "rollout"]
    reference_every: Count | None
    kl_target: Positive | None
    kl_horizon: Positive | None
    evaluate_every: Count
    max_seconds: Positive | None


class Seeds(Section):
    """The seeds `first` to `last`, both counted."""

    first: CountOrZero
    last: CountOrZero


class Evaluation(Section):
    num_starts: Count
    sampled: bool
    num_quick_starts: Count
    train_seeds: Seeds
    validation_seeds: Seeds
    eval_seeds: Seeds
    num_videos: CountOrZero


class Train(Section):
    seed: CountOrZero
    precision: Literal["auto", "fp32", "bf16"]
    device: Literal["auto", "cpu", "cuda"]
    num_threads: CountOrZero
    checkpoint_every: Count
    keep_checkpoints: Count
    tensorboard: bool
    trackers: tuple[Literal["trackio", "wandb"], ...]
