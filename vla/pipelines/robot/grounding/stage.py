"""Grounding as a stage of a robot run, for a model without a pretrained checkpoint."""

from __future__ import annotations

from vla.config.robot import RobotConfig
from vla.data.questions import QuestionEncoder
from vla.models.vlm import VisionLanguageModel
from vla.pipelines.robot.grounding.settings import GroundingSettings
from vla.pipelines.robot.grounding.trainer import GroundingTrainer
from vla.sft.loop import Metrics
from vla.simulator import Simulator
from vla.training.run import Run

SHOWN_METRICS = ("loss", "answer_accuracy", "detection_accuracy")
"""Metrics on the progress bar."""
LOG_EVERY = 20
NUM_CHECKPOINTS = 10


def grounding_stage(
    run: Run,
    config: RobotConfig,
    simulator: Simulator,
    model: VisionLanguageModel,
    encoder: QuestionEncoder,
) -> None:
    """Ground the model in place; resumable. Skipped where `grounding.num_steps` is 0."""
    settings = GroundingSettings.from_section(config.grounding)
    if settings.num_steps == 0:
        return
    trainer = GroundingTrainer(
        model, encoder, simulator.scenes(), settings, config.train.seed, run.processes
    )
    saved = run.load("grounding")
    num_done = 0 if saved is None else saved["done"]
    save_every = max(1, settings.num_steps // NUM_CHECKPOINTS)
    with (
        run.progress.bar("grounding", settings.num_steps, num_done) as bar,
        run.timer("grounding"),
    ):
        if saved is None:
            num_envs = config.sim.num_envs
            trainer.fill(min(settings.pool_size, 4 * num_envs), num_envs)
        else:
            trainer.pool.restore(saved["blocks"])

        def on_step(phase: str, step: int, metrics: Metrics) -> None:
            nonlocal num_done
            num_done += 1
            bar.advance(1, **{name: metrics[name] for name in SHOWN_METRICS if name in metrics})
            if step % LOG_EVERY == 0:
                run.log.write(f"grounding_{phase}", step, metrics)
            stop = run.stop.requested
            if stop or run.checkpoint_overdue or num_done % save_every == 0:
                run.save("grounding", num_done, {**trainer.state_dict(), "done": num_done})
            if stop:
                run.check_stop()

        trainer.train(on_step, saved)
