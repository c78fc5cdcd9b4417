"""Pretraining of a small vision-language model by grounding; writes a `model.checkpoint`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from vla.build import build_vlm, small_architecture
from vla.config.robot import RobotConfig
from vla.data.questions import QuestionEncoder
from vla.files.writing import write_json
from vla.models.checkpoint import num_parameters, save_vlm
from vla.pipelines.robot.grounding.answers import NUM_HELD_OUT, evaluate_answers
from vla.pipelines.robot.grounding.settings import GroundingSettings
from vla.pipelines.robot.grounding.stage import LOG_EVERY, SHOWN_METRICS
from vla.pipelines.robot.grounding.trainer import GroundingTrainer
from vla.sft.loop import Metrics
from vla.simulator import Simulator
from vla.training.metrics import MetricsLog
from vla.training.progress import Progress
from vla.training.run_folder import describe_environment, open_run, to_plain
from vla.training.seed import seed_everything

SAVE_EVERY = 500


def run_pretraining(config: RobotConfig, simulator: Simulator) -> Path:
    """Train a model, write its checkpoint and its held-out accuracy; the checkpoint's folder.

    Training starts from `model.checkpoint` where the settings name one.

    Raises:
        ValueError: a part of the model is not small, or the checkpoint does not fit the settings.
    """
    source = simulator.scenes()
    architecture = small_architecture(config, simulator.proprio_size, source.num_plan_numbers)
    if architecture is None:
        raise ValueError(
            "pretraining is for small models: choose model=tiny; hub models come pretrained"
        )
    seed_everything(config.train.seed)
    folder = open_run(config).path
    log = MetricsLog(folder, tensorboard=config.train.tensorboard)
    progress = Progress()
    model, tokenizer = build_vlm(
        config, simulator.proprio_size, source.num_plan_numbers, simulator.texts()
    )
    if model.plan is not None:
        # A loaded checkpoint keeps its own number of queries, whatever policy.chunk is.
        architecture = replace(architecture, num_queries=len(model.plan.queries))
    encoder = QuestionEncoder(tokenizer, model.backbone.vocabulary_size)
    settings = GroundingSettings.from_section(config.grounding)
    trainer = GroundingTrainer(model, encoder, source, settings, config.train.seed)
    trainer.fill(4 * config.sim.num_envs, config.sim.num_envs)
    if config.model.checkpoint is None:
        model.fit_proprio(torch.from_numpy(trainer.pool.proprio().copy()))
    with progress.bar("grounding", settings.num_steps) as bar:

        def on_step(phase: str, step: int, metrics: Metrics) -> None:
            bar.advance(1, **{name: metrics[name] for name in SHOWN_METRICS if name in metrics})
            if step % LOG_EVERY == 0:
                log.write(f"grounding_{phase}", step, metrics)
            if step % SAVE_EVERY == 0:
                save_vlm(folder, model, architecture, tokenizer)

        trainer.train(on_step)
    save_vlm(folder, model, architecture, tokenizer)
    accuracy = evaluate_answers(model, encoder, simulator).means()
    record = {
        "num_parameters": num_parameters(model),
        "held_out": accuracy,
        "num_held_out": NUM_HELD_OUT,
        **describe_environment(),
    }
    write_json(folder / "metrics.json", to_plain(record))
    for name, value in accuracy.items():
        progress.print_line(f"  {name:<48}{value:.4f}")
    log.close()
    return folder
