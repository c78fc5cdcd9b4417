"""What a model goes on learning beside demonstrations, in the same steps: questions about scenes,
and texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from vla.config.robot import RobotConfig
from vla.data.questions import QuestionEncoder
from vla.pipelines.robot.cotraining_text import TextCoTraining
from vla.pipelines.robot.grounding import Grounding, GroundingSettings
from vla.sft.protocols import ImitablePolicy
from vla.simulator import SceneSource, Simulator
from vla.training.distributed import Processes
from vla.training.seed import derive_seed


@dataclass(frozen=True)
class AuxiliaryTask:
    """Something to learn: `batch(step)` depends on nothing but the step, and its `loss` counts
    `weight` times."""

    weight: float
    batch: Callable[[int], Any]
    loss: Callable[[Any], tuple[Tensor, dict[str, float]]]


def auxiliary_tasks(
    config: RobotConfig,
    policy: ImitablePolicy,
    encoder: QuestionEncoder,
    world: Simulator,
    texts: TextCoTraining | None,
    processes: Processes,
) -> list[AuxiliaryTask]:
    """What `data` asks for by a weight above 0."""
    found = []
    if config.data.question_weight:
        asking = scene_question_task(config, policy, encoder, world.scenes(), processes)
        found.append(AuxiliaryTask(config.data.question_weight, asking.mixed_batch, asking.loss))
    if texts is not None and config.data.text_weight:
        found.append(AuxiliaryTask(config.data.text_weight, texts.batch, texts.loss))
    return found


def scene_question_task(
    config: RobotConfig,
    policy: ImitablePolicy,
    encoder: QuestionEncoder,
    source: SceneSource,
    processes: Processes,
) -> Grounding:
    """Questions and plans about scenes other than the demonstrations', so that the model keeps what
    it can see."""
    data = config.data
    settings = GroundingSettings(**config.grounding.model_dump())
    settings = replace(
        settings,
        batch_size=data.question_batch_size,
        questions_per_scene=data.questions_per_scene,
        pool_size=data.num_question_scenes,
        num_new_scenes_per_step=0,
        detection_weight=0.0,
    )
    seed = derive_seed(config.train.seed, "beside") % 2**32
    beside = Grounding(policy.model, encoder, source, settings, seed, processes)
    beside.fill(data.num_question_scenes, config.sim.num_envs)
    return beside
