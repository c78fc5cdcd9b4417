"""Supervised fine-tuning as a stage of a run: resumable, with held-out loss and averaged weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vla.config.robot import RobotConfig
from vla.data.demonstrations import Demonstrations
from vla.data.observations import Observer
from vla.data.questions import QuestionEncoder
from vla.policies.token import TokenPolicy
from vla.sft.loop import SupervisedSettings, SupervisedState, fit
from vla.stages.grounding import FIRST_FREE_SEED, GroundingBatch, ScenePool, SceneSource
from vla.stages.imitation import Augmentation, ImitationBatches, held_out_loss, mixed_loss
from vla.stages.run import Run
from vla.train.optim import EMA, make_optimizer
from vla.train.seed import derive_seed

SHOWN = ("loss", "action_loss", "answer_accuracy")


def question_batches(
    config: RobotConfig, policy: TokenPolicy, encoder: QuestionEncoder, source: SceneSource
) -> Callable[[int], GroundingBatch] | None:
    """Questions to mix in, a smaller batch of them beside every batch of frames; None when their weight is 0."""
    data, model = config.data, policy.model
    if data.question_weight == 0:
        return None
    first_seed = FIRST_FREE_SEED + derive_seed(config.train.seed, "questions") % FIRST_FREE_SEED
    pool = ScenePool(source, first_seed, data.question_scenes, model.cameras, round(model.vision.num_patches**0.5))
    while pool.size < data.question_scenes:
        pool.add(min(config.sim.num_envs, data.question_scenes - pool.size))

    def at(step: int) -> GroundingBatch:
        rng = np.random.default_rng([config.train.seed, step])
        return pool.draw(data.question_batch_size, data.questions_per_scene, rng, encoder)

    return at


def supervised_stage(
    run: Run,
    config: RobotConfig,
    policy: TokenPolicy,
    demonstrations: Demonstrations,
    observer: Observer,
    questions: Callable[[int], GroundingBatch] | None,
) -> None:
    """Train `policy` in place; it ends with the averaged weights where there are any."""
    sft = config.sft
    training, held_out = demonstrations.split(config.data.holdout_fraction, config.train.seed)
    augmentation = Augmentation(sft.augment.shift_pixels, sft.augment.light)
    batches = ImitationBatches(
        training, observer, policy.chunk, sft.batch_size, augmentation, config.train.seed, questions
    )
    optimizer = make_optimizer(policy, sft.optimizer, sft.learning_rate, sft.weight_decay, sft.muon_learning_rate)
    ema = None if sft.ema_decay is None else EMA(policy, sft.ema_decay)
    state = SupervisedState()
    saved = run.load("sft")
    if saved is not None:
        policy.load_state_dict(saved["policy"])
        optimizer.load_state_dict(saved["optimizer"])
        if ema is not None:
            ema.load_state_dict(saved["ema"])
        state = SupervisedState(**saved["state"])
    settings = SupervisedSettings(sft.num_steps, sft.max_seconds, sft.warmup_fraction, sft.schedule, sft.max_grad_norm)
    save_every = max(1, sft.num_steps // 5)

    def save() -> None:
        parts = {"policy": policy.state_dict(), "optimizer": optimizer.state_dict(), "state": vars(state)}
        run.save("sft", state.step, parts if ema is None else {**parts, "ema": ema.state_dict()})

    def on_step(step: int, metrics: dict[str, float]) -> bool:
        bar.advance(1, **{name: metrics[name] for name in SHOWN if name in metrics})
        if step % sft.evaluate_every == 0:
            metrics["held_out_loss"] = held_out_loss(policy, held_out, observer, sft.batch_size)
        if step % sft.log_every == 0 or "held_out_loss" in metrics:
            run.log.write("sft", step, metrics)
        if run.stop.requested or step % save_every == 0:
            save()
        return run.stop.requested

    with run.progress.stage("SFT", sft.num_steps, state.step) as bar:
        fit(policy, lambda batch: mixed_loss(policy, batch, config.data.question_weight), batches, optimizer, settings,
            state, ema, on_step)  # fmt: skip
    run.check_stop()
    if ema is not None:
        ema.copy_to(policy)
    save()
    loss = held_out_loss(policy, held_out, observer, sft.batch_size)
    run.finish("sft", {"num_steps": state.step, "held_out_loss": loss, "num_frames": training.num_frames})
