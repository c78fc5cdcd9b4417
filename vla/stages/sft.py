"""Supervised fine-tuning as a stage of a run: resumable, with held-out loss and averaged
weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypeGuard

import numpy as np
from torch import Tensor

from vla.config.robot import RobotConfig
from vla.data.demonstrations import Demonstrations
from vla.data.observations import Observer
from vla.sft.loop import SupervisedSettings, SupervisedState, fit
from vla.sft.probe import features_of, probe
from vla.sft.protocols import ImitablePolicy, ProbedPolicy
from vla.stages.beside import Beside
from vla.stages.imitation import (
    Augmentation,
    ImitationBatches,
    action_tensors,
    held_out_loss,
    mixed_loss,
)
from vla.train.distributed import own_share
from vla.train.optim import EMA, make_optimizer
from vla.train.run import Run
from vla.types import Observation

SHOWN = ("loss", "action_loss", "plan_error", "text_loss")


def probes(config: RobotConfig, policy: ImitablePolicy) -> TypeGuard[ProbedPolicy]:
    """Whether SFT begins with the head alone."""
    return bool(config.sft.probe_steps) and isinstance(policy, ProbedPolicy) and policy.can_probe


def num_probe_steps(config: RobotConfig, num_frames: int) -> int:
    """Optimizer steps of the head alone: `sft.probe_steps`, or fewer where they would be more than
    `sft.probe_passes` passes over the frames.
    """
    sft = config.sft
    if sft.probe_passes is None:
        return sft.probe_steps
    return min(
        sft.probe_steps,
        math.ceil(sft.probe_passes * num_frames / min(sft.probe_batch_size, num_frames)),
    )


def num_whole_steps(config: RobotConfig, policy: ImitablePolicy) -> int:
    """Optimizer steps of the whole policy: none where the head was all that should learn."""
    return 0 if config.sft.probe_only and probes(config, policy) else config.sft.num_steps


def supervised_stage(
    run: Run,
    config: RobotConfig,
    policy: ImitablePolicy,
    demonstrations: Demonstrations,
    observer: Observer,
    beside: Sequence[Beside],
) -> None:
    """Train `policy` in place; it ends with the averaged weights where there are any."""
    sft = config.sft
    training, held_out = demonstrations.split(config.data.holdout_fraction, config.train.seed)
    augmentation = Augmentation(sft.augment.shift_pixels, sft.augment.light)
    processes = run.processes
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
    optimizer = make_optimizer(
        policy, sft.optimizer, sft.learning_rate, sft.weight_decay, sft.muon_learning_rate
    )
    saved, num_steps = run.load("sft"), num_whole_steps(config, policy)
    probed = saved is None and probes(config, policy)
    if probed:
        probe_stage(run, config, policy, training, observer, augmentation)
    ema = None if sft.ema_decay is None else EMA(policy, sft.ema_decay)
    state = SupervisedState()
    if saved is not None:
        policy.load_state_dict(saved["policy"])
        optimizer.load_state_dict(saved["optimizer"])
        if ema is not None:
            ema.load_state_dict(saved["ema"])
        state = SupervisedState(**saved["state"])
    settings = SupervisedSettings(
        num_steps, sft.max_seconds, sft.warmup_fraction, sft.schedule, sft.max_grad_norm
    )
    save_every = max(1, num_steps // 5)

    def save() -> None:
        parts = {
            "policy": policy.state_dict(),
            "optimizer": optimizer.state_dict(),
            "state": vars(state),
        }
        run.save("sft", state.step, parts if ema is None else {**parts, "ema": ema.state_dict()})

    if probed:
        save()

    def on_step(step: int, metrics: dict[str, float]) -> bool:
        bar.advance(1, **{name: metrics[name] for name in SHOWN if name in metrics})
        if step % sft.evaluate_every == 0:
            metrics["held_out_loss"] = held_out_loss(
                policy, held_out, observer, sft.batch_size, processes=processes
            )
        if step % sft.log_every == 0 or "held_out_loss" in metrics:
            run.log.write("sft", step, metrics)
        stop = run.stop.requested
        if stop or run.late or step % save_every == 0:
            save()
        return stop

    if num_steps:
        with run.progress.stage("SFT", num_steps, state.step) as bar:
            loss_of = partial(mixed_loss, policy, beside=beside, reduce_sum=processes.reduce_sum)
            fit(policy, loss_of, batches, optimizer, settings, state, ema, on_step, processes)
    run.check_stop()
    if ema is not None:
        ema.copy_to(policy)
    save()
    loss = held_out_loss(policy, held_out, observer, sft.batch_size, processes=processes)
    run.finish(
        "sft", {"num_steps": state.step, "held_out_loss": loss, "num_frames": training.num_frames}
    )


def probe_stage(
    run: Run,
    config: RobotConfig,
    policy: ProbedPolicy,
    training: Demonstrations,
    observer: Observer,
    augmentation: Augmentation,
) -> None:
    """Train the head on what the model, as it is, sees in the demonstrations. Stopped half-way, it
    begins anew."""
    sft, frames = config.sft, own_share(np.arange(training.num_frames), run.processes)

    def batches() -> Iterator[tuple[Observation, Tensor, Tensor]]:
        for at in range(0, len(frames), sft.batch_size):
            batch = training.batch(frames[at : at + sft.batch_size], policy.chunk)
            bar.advance(len(batch.actions))
            yield augmentation.apply(observer(batch)), *action_tensors(batch)

    with (
        run.progress.stage("looking at the demonstrations", len(frames)) as bar,
        run.processes.own_draws("features"),
    ):
        features = features_of(policy, batches())
    run.check_stop()
    num_steps = num_probe_steps(config, training.num_frames)
    settings = SupervisedSettings(num_steps, None, sft.warmup_fraction, "cosine", sft.max_grad_norm)
    with run.progress.stage("learning of the head", num_steps) as bar:

        def on_step(step: int, metrics: dict[str, float]) -> bool:
            bar.advance(1, loss=metrics["loss"])
            if step % sft.log_every == 0:
                run.log.write("probe", step, metrics)
            return run.stop.requested

        probe(
            policy,
            features,
            sft.probe_batch_size,
            sft.probe_learning_rate,
            sft.weight_decay,
            settings,
            on_step,
            run.processes,
        )
    run.check_stop()
