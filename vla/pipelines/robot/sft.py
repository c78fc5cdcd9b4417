"""SFT as a stage of a robot run: resumable, with held-out loss and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from vla.config.robot import RobotConfig, Sft
from vla.data.demonstrations import Demonstrations
from vla.data.observations import Observer
from vla.pipelines.robot.cotraining import AuxiliaryTask
from vla.pipelines.robot.imitation import (
    Augmentation,
    ImitationBatch,
    ImitationBatches,
    action_tensors,
    cotraining_loss,
    held_out_loss,
    split_batch,
)
from vla.policies.vla_policy import VlaPolicy
from vla.sft.head_pretraining import extract_features, train_head
from vla.sft.loop import Metrics, SupervisedSettings, SupervisedTrainer
from vla.training.distributed import shard_rows
from vla.training.progress import ProgressBar
from vla.training.run import Run
from vla.types import Observation

SHOWN_METRICS = ("loss", "action_loss", "plan_error", "text_loss")
"""Metrics on the progress bar."""
NUM_CHECKPOINTS = 5


def pretrains_head(settings: Sft, policy: VlaPolicy) -> bool:
    """True where SFT begins with head pretraining."""
    return settings.head_steps > 0 and policy.can_train_head


def num_head_steps(settings: Sft, num_frames: int) -> int:
    """Optimizer steps of head pretraining: `head_steps`, at most `max_head_epochs` epochs."""
    if settings.max_head_epochs is None:
        return settings.head_steps
    batch_size = min(settings.head_batch_size, num_frames)
    return min(settings.head_steps, math.ceil(settings.max_head_epochs * num_frames / batch_size))


def num_full_steps(config: RobotConfig, policy: VlaPolicy) -> int:
    """Optimizer steps of the whole policy: none where `sft.head_only` trains the head alone."""
    sft = config.sft
    return 0 if sft.head_only and pretrains_head(sft, policy) else sft.num_steps


def full_model_settings(settings: Sft, num_steps: int) -> SupervisedSettings:
    """Settings of the supervised loop for `num_steps` steps of the whole policy."""
    return SupervisedSettings(
        num_steps=num_steps,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        max_seconds=settings.max_seconds,
        warmup_steps=round(settings.warmup_fraction * num_steps),
        schedule=settings.schedule,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        muon_learning_rate=settings.muon_learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        ema_decay=settings.ema_decay,
        learning_rate_name="sft.learning_rate",
    )


def head_settings(settings: Sft, num_frames: int) -> SupervisedSettings:
    """Settings of the supervised loop for head pretraining on the features of `num_frames`."""
    num_steps = num_head_steps(settings, num_frames)
    return SupervisedSettings(
        num_steps=num_steps,
        batch_size=settings.head_batch_size,
        warmup_steps=round(settings.warmup_fraction * num_steps),
        learning_rate=settings.head_learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        learning_rate_name="sft.head_learning_rate",
    )


def sft_stage(
    run: Run,
    config: RobotConfig,
    policy: VlaPolicy,
    demonstrations: Demonstrations,
    observer: Observer,
    tasks: Sequence[AuxiliaryTask],
) -> None:
    """Train the policy in place; it ends with the averaged weights where `sft.ema_decay` is set."""
    sft = config.sft
    processes = run.processes
    training, held_out = demonstrations.split(config.data.holdout_fraction, config.train.seed)
    augmentation = Augmentation(sft.augment.shift_pixels, sft.augment.light)
    settings = full_model_settings(sft, num_full_steps(config, policy))
    saved = run.load("sft")
    begins_with_head = saved is None and pretrains_head(sft, policy)
    if begins_with_head:
        head_pretraining_stage(run, sft, policy, training, observer, augmentation)
    # The trainer comes after head pretraining: its weight average starts from these weights.
    trainer = SupervisedTrainer(policy, settings, processes=processes)
    if saved is not None:
        policy.load_state_dict(saved["policy"])
        trainer.load_state_dict(saved)
    if begins_with_head:
        save_checkpoint(run, trainer)
    evaluate = partial(
        held_out_loss, policy, held_out, observer, sft.batch_size, processes=processes
    )
    if settings.num_steps:
        batches = ImitationBatches(
            training,
            observer,
            policy.chunk,
            sft.batch_size,
            augmentation,
            config.train.seed,
            tasks,
            processes,
        )
        compute_loss = partial(
            cotraining_loss, policy, tasks=tasks, reduce_sum=processes.reduce_sum
        )

        def micro_batches(step: int) -> list[ImitationBatch]:
            batch = batches(step)
            if sft.micro_batch_size is None:
                return [batch]
            return split_batch(policy, batch, sft.micro_batch_size, processes.reduce_sum)

        with run.progress.bar("SFT", settings.num_steps, trainer.step) as bar:
            on_step = make_step_callback(run, sft, trainer, bar, evaluate)
            trainer.train(micro_batches, compute_loss, on_step)
    run.check_stop()
    trainer.use_averaged_weights()
    save_checkpoint(run, trainer)
    values = {"num_steps": trainer.step, "held_out_loss": evaluate()}
    run.finish_stage("sft", {**values, "num_frames": training.num_frames})


def make_step_callback(
    run: Run,
    settings: Sft,
    trainer: SupervisedTrainer,
    bar: ProgressBar,
    evaluate: Callable[[], float],
) -> Callable[[int, Metrics], bool]:
    """Make the callback after every step: shows, evaluates, logs and saves.

    The callback returns True where the run shall stop.
    """
    save_every = max(1, trainer.settings.num_steps // NUM_CHECKPOINTS)

    def on_step(step: int, metrics: Metrics) -> bool:
        bar.advance(1, **{name: metrics[name] for name in SHOWN_METRICS if name in metrics})
        if step % settings.evaluate_every == 0:
            metrics["held_out_loss"] = evaluate()
        if step % settings.log_every == 0 or "held_out_loss" in metrics:
            run.log.write("sft", step, metrics)
        stop = run.stop.requested
        if stop or run.checkpoint_overdue or step % save_every == 0:
            save_checkpoint(run, trainer)
        return stop

    return on_step


def save_checkpoint(run: Run, trainer: SupervisedTrainer) -> None:
    """Write a checkpoint of the stage."""
    run.save("sft", trainer.step, {"policy": trainer.module.state_dict(), **trainer.state_dict()})


def head_pretraining_stage(
    run: Run,
    settings: Sft,
    policy: VlaPolicy,
    training: Demonstrations,
    observer: Observer,
    augmentation: Augmentation,
) -> None:
    """Train the head on the model's features of the demonstrations; starts over when stopped."""
    frames = shard_rows(np.arange(training.num_frames), run.processes)

    def batches() -> Iterator[tuple[Observation, Tensor, Tensor]]:
        for start in range(0, len(frames), settings.batch_size):
            batch = training.batch(frames[start : start + settings.batch_size], policy.chunk)
            bar.advance(len(batch.actions))
            actions, action_mask = action_tensors(batch)
            yield augmentation.apply(observer(batch)), actions, action_mask

    with (
        run.progress.bar("features of the demonstrations", len(frames)) as bar,
        run.processes.process_rng("features"),
    ):
        features = extract_features(policy, batches())
    run.check_stop()
    loop_settings = head_settings(settings, training.num_frames)
    with run.progress.bar("head pretraining", loop_settings.num_steps) as bar:

        def on_step(step: int, metrics: Metrics) -> bool:
            bar.advance(1, loss=metrics["loss"])
            if step % settings.log_every == 0:
                run.log.write("head_pretraining", step, metrics)
            return run.stop.requested

        train_head(policy, features, loop_settings, on_step, run.processes)
    run.check_stop()
