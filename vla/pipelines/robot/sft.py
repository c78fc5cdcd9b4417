"""Supervised fine-tuning as a stage of a run: resumable, with held-out loss and averaged
weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from vla.config.robot import RobotConfig
from vla.data.demonstrations import Demonstrations
from vla.data.observations import Observer
from vla.pipelines.robot.cotraining import AuxiliaryTask
from vla.pipelines.robot.imitation import (
    Augmentation,
    ImitationBatches,
    action_tensors,
    cotraining_loss,
    held_out_loss,
)
from vla.policies.vla_policy import VlaPolicy
from vla.sft.head_pretraining import extract_features, train_head
from vla.sft.loop import Metrics, SupervisedSettings, SupervisedTrainer
from vla.training.distributed import shard_rows
from vla.training.progress import ProgressBar
from vla.training.run import Run
from vla.types import Observation

SHOWN = ("loss", "action_loss", "plan_error", "text_loss")


def pretrains_head(config: RobotConfig, policy: VlaPolicy) -> bool:
    """Whether SFT begins with the head alone."""
    return config.sft.head_steps > 0 and policy.can_train_head


def num_head_steps(config: RobotConfig, num_frames: int) -> int:
    """Optimizer steps of the head alone: `sft.head_steps`, or fewer where they would be more than
    `sft.max_head_epochs` passes over the frames.
    """
    sft = config.sft
    if sft.max_head_epochs is None:
        return sft.head_steps
    return min(
        sft.head_steps,
        math.ceil(sft.max_head_epochs * num_frames / min(sft.head_batch_size, num_frames)),
    )


def num_full_steps(config: RobotConfig, policy: VlaPolicy) -> int:
    """Optimizer steps of the whole policy: none where the head was all that should learn."""
    return 0 if config.sft.head_only and pretrains_head(config, policy) else config.sft.num_steps


def full_model_settings(config: RobotConfig, num_steps: int) -> SupervisedSettings:
    """How the whole policy is trained."""
    sft = config.sft
    return SupervisedSettings(
        num_steps=num_steps,
        batch_size=sft.batch_size,
        max_seconds=sft.max_seconds,
        warmup_steps=round(sft.warmup_fraction * num_steps),
        schedule=sft.schedule,
        optimizer=sft.optimizer,
        learning_rate=sft.learning_rate,
        muon_learning_rate=sft.muon_learning_rate,
        weight_decay=sft.weight_decay,
        max_grad_norm=sft.max_grad_norm,
        ema_decay=sft.ema_decay,
        learning_rate_name="sft.learning_rate",
    )


def head_settings(config: RobotConfig, num_frames: int) -> SupervisedSettings:
    """How the head alone is trained on the features of so many frames."""
    sft = config.sft
    num_steps = num_head_steps(config, num_frames)
    return SupervisedSettings(
        num_steps=num_steps,
        batch_size=sft.head_batch_size,
        warmup_steps=round(sft.warmup_fraction * num_steps),
        learning_rate=sft.head_learning_rate,
        weight_decay=sft.weight_decay,
        max_grad_norm=sft.max_grad_norm,
        learning_rate_name="sft.head_learning_rate",
    )


def sft_stage(
    run: Run,
    config: RobotConfig,
    policy: VlaPolicy,
    demonstrations: Demonstrations,
    observer: Observer,
    beside: Sequence[AuxiliaryTask],
) -> None:
    """Train `policy` in place; it ends with the averaged weights where there are any."""
    sft = config.sft
    processes = run.processes
    training, held_out = demonstrations.split(config.data.holdout_fraction, config.train.seed)
    augmentation = Augmentation(sft.augment.shift_pixels, sft.augment.light)
    settings = full_model_settings(config, num_full_steps(config, policy))
    saved = run.load("sft")
    begins_with_head = saved is None and pretrains_head(config, policy)
    if begins_with_head:
        head_pretraining_stage(run, config, policy, training, observer, augmentation)
    # Made after the head is trained: the average begins with the weights of this moment.
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
            beside,
            processes,
        )
        loss_of = partial(cotraining_loss, policy, beside=beside, reduce_sum=processes.reduce_sum)
        with run.progress.bar("SFT", settings.num_steps, trainer.step) as bar:
            on_step = make_step_callback(run, config, trainer, bar, evaluate)
            trainer.train(lambda step: [batches(step)], loss_of, on_step)
    run.check_stop()
    trainer.use_averaged_weights()
    save_checkpoint(run, trainer)
    values = {"num_steps": trainer.step, "held_out_loss": evaluate()}
    run.finish_stage("sft", {**values, "num_frames": training.num_frames})


def make_step_callback(
    run: Run,
    config: RobotConfig,
    trainer: SupervisedTrainer,
    bar: ProgressBar,
    evaluate: Callable[[], float],
) -> Callable[[int, Metrics], bool]:
    """A callback after every step: shows, evaluates, logs and saves; True where the run was asked
    to stop."""
    sft = config.sft
    save_every = max(1, trainer.settings.num_steps // 5)

    def on_step(step: int, metrics: Metrics) -> bool:
        bar.advance(1, **{name: metrics[name] for name in SHOWN if name in metrics})
        if step % sft.evaluate_every == 0:
            metrics["held_out_loss"] = evaluate()
        if step % sft.log_every == 0 or "held_out_loss" in metrics:
            run.log.write("sft", step, metrics)
        stop = run.stop.requested
        if stop or run.checkpoint_overdue or step % save_every == 0:
            save_checkpoint(run, trainer)
        return stop

    return on_step


def save_checkpoint(run: Run, trainer: SupervisedTrainer) -> None:
    """A checkpoint of the stage."""
    run.save("sft", trainer.step, {"policy": trainer.module.state_dict(), **trainer.state_dict()})


def head_pretraining_stage(
    run: Run,
    config: RobotConfig,
    policy: VlaPolicy,
    training: Demonstrations,
    observer: Observer,
    augmentation: Augmentation,
) -> None:
    """Train the head on what the model, as it is, computes of the demonstrations. Stopped half-way,
    it begins anew."""
    batch_size = config.sft.batch_size
    frames = shard_rows(np.arange(training.num_frames), run.processes)

    def batches() -> Iterator[tuple[Observation, Tensor, Tensor]]:
        for at in range(0, len(frames), batch_size):
            batch = training.batch(frames[at : at + batch_size], policy.chunk)
            bar.advance(len(batch.actions))
            yield augmentation.apply(observer(batch)), *action_tensors(batch)

    with (
        run.progress.bar("looking at the demonstrations", len(frames)) as bar,
        run.processes.process_rng("features"),
    ):
        features = extract_features(policy, batches())
    run.check_stop()
    settings = head_settings(config, training.num_frames)
    with run.progress.bar("learning of the head", settings.num_steps) as bar:

        def on_step(step: int, metrics: Metrics) -> bool:
            bar.advance(1, loss=metrics["loss"])
            if step % config.sft.log_every == 0:
                run.log.write("head", step, metrics)
            return run.stop.requested

        train_head(policy, features, settings, on_step, run.processes)
    run.check_stop()
