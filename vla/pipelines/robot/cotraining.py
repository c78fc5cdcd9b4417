"""Auxiliary tasks of SFT (co-training): questions about scenes, and texts.

Their weights are settings of `configs/data`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from vla.config.robot import RobotConfig
from vla.data.questions import QuestionEncoder
from vla.models.vlm import VisionLanguageModel
from vla.pipelines.robot.cotraining_text import TextCoTraining
from vla.pipelines.robot.grounding.settings import GroundingSettings
from vla.pipelines.robot.grounding.trainer import GroundingTrainer
from vla.sft.loop import Metrics
from vla.simulator import Simulator
from vla.training.distributed import Processes
from vla.training.seed import derive_seed


@dataclass(frozen=True)
class AuxiliaryTask:
    """A task trained beside the demonstrations; its `loss` is scaled by `weight`.

    `batch(step)` depends on the step alone, so a resumed run gets the same batches.
    """

    weight: float
    batch: Callable[[int], Any]
    loss: Callable[[Any], tuple[Tensor, Metrics]]


def auxiliary_tasks(
    config: RobotConfig,
    model: VisionLanguageModel,
    encoder: QuestionEncoder,
    simulator: Simulator,
    texts: TextCoTraining | None,
    processes: Processes,
) -> list[AuxiliaryTask]:
    """The auxiliary tasks whose weight in the section `data` is above 0."""
    tasks = []
    if config.data.question_weight:
        scenes = scene_task(config, model, encoder, simulator, processes)
        tasks.append(AuxiliaryTask(config.data.question_weight, scenes.step_batch, scenes.loss))
    if texts is not None and config.data.text_weight:
        tasks.append(AuxiliaryTask(config.data.text_weight, texts.batch, texts.loss))
    return tasks


def scene_task(
    config: RobotConfig,
    model: VisionLanguageModel,
    encoder: QuestionEncoder,
    simulator: Simulator,
    processes: Processes,
) -> GroundingTrainer:
    """Questions and instructions about random scenes, against forgetting of grounding."""
    data = config.data
    settings = replace(
        GroundingSettings.from_section(config.grounding),
        batch_size=data.question_batch_size,
        questions_per_scene=data.questions_per_scene,
        pool_size=data.num_question_scenes,
        num_new_scenes_per_step=0,
        detection_weight=0.0,
    )
    seed = derive_seed(config.train.seed, "beside") % 2**32
    trainer = GroundingTrainer(model, encoder, simulator.scenes(), settings, seed, processes)
    trainer.fill(data.num_question_scenes, config.sim.num_envs)
    return trainer
