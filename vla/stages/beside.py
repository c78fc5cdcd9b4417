"""What a model goes on learning beside demonstrations, in the same steps: questions about scenes,
and texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from vla.config.robot import RobotConfig
from vla.data.questions import QuestionEncoder
from vla.sft.protocols import ImitablePolicy
from vla.simulator import SceneSource, Simulator
from vla.stages.grounding import Grounding, GroundingSettings
from vla.stages.texts import Texts
from vla.train.distributed import Processes
from vla.train.seed import derive_seed


@dataclass(frozen=True)
class Beside:
    """Something to learn: `batch(step)` depends on nothing but the step, and its `loss` counts
    `weight` times."""

    weight: float
    batch: Callable[[int], Any]
    loss: Callable[[Any], tuple[Tensor, dict[str, float]]]


def everything_beside(
    config: RobotConfig,
    policy: ImitablePolicy,
    encoder: QuestionEncoder,
    world: Simulator,
    texts: Texts | None,
    processes: Processes,
) -> list[Beside]:
    """What `data` asks for by a weight above 0."""
    found = []
    if config.data.question_weight:
        asking = questions_about_scenes(config, policy, encoder, world.scenes(), processes)
        found.append(Beside(config.data.question_weight, asking.mixed_batch, asking.loss))
    if texts is not None and config.data.text_weight:
        found.append(Beside(config.data.text_weight, texts.batch, texts.loss))
    return found


def questions_about_scenes(
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
        pool_size=data.question_scenes,
        fresh_per_step=0,
        sighting_weight=0.0,
    )
    seed = derive_seed(config.train.seed, "beside") % 2**32
    beside = Grounding(policy.model, encoder, source, settings, seed, processes)
    beside.fill(data.question_scenes, config.sim.num_envs)
    return beside
