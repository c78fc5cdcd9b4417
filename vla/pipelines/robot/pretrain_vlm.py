"""Pretraining of a tiny vision-language model on questions about scenes: what `model.checkpoint`
names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vla.build import build_vlm, small_architecture
from vla.config.robot import RobotConfig
from vla.data.questions import QuestionEncoder
from vla.files.writing import write_json
from vla.models.checkpoint import num_parameters, save_vlm
from vla.pipelines.robot.grounding import (
    FIRST_FREE_SEED,
    Grounding,
    GroundingSettings,
    QuestionAnswers,
    answer_questions,
)
from vla.simulator import Simulator
from vla.training.metrics import MetricsLog
from vla.training.progress import Progress
from vla.training.run_folder import describe_environment, open_run, to_plain
from vla.training.seed import seed_everything

NUM_HELD_OUT = 2048
"""Questions about scenes never trained on, behind the accuracy that is written beside the
checkpoint."""
SAVE_EVERY = 500


def run_pretraining(config: RobotConfig, world: Simulator) -> Path:
    """Train, save and evaluate; the folder of the checkpoint. `model.checkpoint` is where it goes on
    from, if given.

    Raises ValueError when a part of the model is not small.
    """
    architecture = small_architecture(config, world.proprio_size, world.scenes().num_plan_numbers)
    if architecture is None:
        raise ValueError(
            "pretraining is for small models: choose model=tiny; hub models come pretrained"
        )
    seed_everything(config.train.seed)
    folder = open_run(config).path
    log, progress = MetricsLog(folder, tensorboard=config.train.tensorboard), Progress()
    model, tokenizer = build_vlm(
        config, world.proprio_size, world.scenes().num_plan_numbers, world.texts()
    )
    if (
        model.plan is not None
    ):  # a checkpoint's own number of queries, which policy.chunk need not be
        architecture = replace(architecture, num_queries=len(model.plan.queries))
    encoder = QuestionEncoder(tokenizer, model.backbone.vocabulary_size)
    settings = GroundingSettings(**config.grounding.model_dump())
    grounding = Grounding(model, encoder, world.scenes(), settings, config.train.seed)
    grounding.fill(4 * config.sim.num_envs, config.sim.num_envs)
    if config.model.checkpoint is None:
        model.fit_proprio(torch.from_numpy(grounding.pool.proprio().copy()))
    with progress.bar("grounding", settings.num_steps) as bar:

        def on_step(part: str, step: int, metrics: dict[str, float]) -> None:
            bar.advance(
                1,
                **{
                    k: metrics[k]
                    for k in ("loss", "answer_accuracy", "sighting_accuracy")
                    if k in metrics
                },
            )
            if step % 20 == 0:
                log.write(f"grounding_{part}", step, metrics)
            if step % SAVE_EVERY == 0:
                save_vlm(folder, model, architecture, tokenizer)

        grounding.train(on_step)
    save_vlm(folder, model, architecture, tokenizer)
    accuracy = evaluate_answers(model, encoder, world).means()
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


def evaluate_answers(
    model: torch.nn.Module,
    encoder: QuestionEncoder,
    world: Simulator,
    num_scenes: int = NUM_HELD_OUT,
) -> QuestionAnswers:
    """Answers to held-out questions that the model writes itself, by the first words of the
    question."""
    seeds = range(2 * FIRST_FREE_SEED + 7, 2 * FIRST_FREE_SEED + 7 + num_scenes)
    rng = np.random.default_rng(num_scenes)
    return answer_questions(model, world.scenes(), encoder, seeds, rng, world.kind_of)  # type: ignore[arg-type]
