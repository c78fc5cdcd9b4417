"""Trainer of grounding: detection first, then question answering and the plan head.

A ViT trained on a few demonstrations alone does not learn to localise (measured: 0 % success).
Grounding replaces the pretraining of a large VLM: it teaches locations, colours, shapes and grasp
state, in words and location tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla.data.questions import LOCATION_RANGE, QuestionEncoder
from vla.devices import to_device
from vla.models.vlm import VisionLanguageModel
from vla.models.vocabulary import NUM_LOCATIONS
from vla.pipelines.robot.grounding.scene_pool import (
    FIRST_SCENE_SEED,
    GroundingBatch,
    InstructionBatch,
    ScenePool,
    augment_observation,
)
from vla.pipelines.robot.grounding.settings import GroundingSettings
from vla.sft.detection import CellTargets, DetectionHead, detection_loss, grounded_phrase_loss
from vla.sft.loop import Metrics, SupervisedTrainer
from vla.sft.losses import answer_loss, global_fraction, plan_loss
from vla.simulator import SceneSource
from vla.training.distributed import SINGLE_PROCESS, Processes, shard_rows
from vla.training.seed import derive_seed
from vla.types import T, map_rows

PHASES_OF_EARLIER_VERSIONS = {"sighting": "detection"}
"""Phase names in checkpoints of earlier versions."""
LOCATION_TOKEN_METRES = 2 * LOCATION_RANGE / NUM_LOCATIONS


@dataclass(frozen=True)
class Phase:
    """A phase of grounding: its `fraction` of all steps, its batches and its loss.

    `first_step` is added to the step number that a batch is made from.
    """

    name: str
    fraction: float
    first_step: int
    batch: Callable[[int], GroundingBatch | InstructionBatch]
    loss: Callable[[Any], tuple[Tensor, Metrics]]


class GroundingTrainer:
    """Trains a model on scenes of a pool; `train` runs both phases."""

    def __init__(
        self,
        model: VisionLanguageModel,
        encoder: QuestionEncoder,
        source: SceneSource,
        settings: GroundingSettings,
        seed: int,
        processes: Processes = SINGLE_PROCESS,
    ):
        self.model = model
        self.encoder = encoder
        self.source = source
        self.settings = settings
        self.seed = seed
        self.processes = processes
        words = [encoder.words(f" {name}") for name in source.object_names]
        self.head = DetectionHead(model.width, words)
        self.mention_head = torch.nn.Sequential(
            torch.nn.LayerNorm(model.width), torch.nn.Linear(model.width, 5)
        )
        parts = torch.nn.ModuleList([self.model, self.head, self.mention_head])
        self._trainable = parts.to(processes.device)
        grid = round(model.vision.num_patches**0.5)
        first_seed = derive_seed(seed, "grounding") % FIRST_SCENE_SEED + FIRST_SCENE_SEED
        self.pool = ScenePool(source, first_seed, settings.pool_size, model.cameras, grid)

    def fill(self, count: int, rows_at_once: int = 128) -> None:
        """Render scenes until the pool holds `count` of them, at most `pool_size`."""
        while self.pool.size < min(count, self.settings.pool_size):
            self.pool.add(min(rows_at_once, count - self.pool.size))

    def batch(self, step: int) -> GroundingBatch:
        """Make this process's rows of the question batch of a step, and add new scenes first."""
        self._add_scenes()
        settings = self.settings
        rng = np.random.default_rng([self.seed, step])
        batch = self.pool.draw_questions(
            settings.batch_size, settings.questions_per_scene, rng, self.encoder
        )
        augmented = augment_observation(batch.observation, 0, settings.light)
        return to_device(
            self._own_rows(replace(batch, observation=augmented)), self.processes.device
        )

    def instruction_batch(self, step: int) -> InstructionBatch:
        """Make this process's rows of the instruction batch of a step, and add new scenes first."""
        self._add_scenes()
        rng = np.random.default_rng([self.seed, step])
        batch = self.pool.draw_instructions(self.settings.batch_size, rng, self.encoder)
        augmented = augment_observation(batch.observation, 0, self.settings.light)
        return to_device(
            self._own_rows(replace(batch, observation=augmented)), self.processes.device
        )

    def step_batch(self, step: int) -> GroundingBatch | InstructionBatch:
        """Make the batch of a step of phase 2: instructions or questions."""
        is_plan_step = self.settings.is_plan_step(step)
        return self.instruction_batch(step) if is_plan_step else self.batch(step)

    def _add_scenes(self) -> None:
        if self.settings.num_new_scenes_per_step:
            self.pool.add(self.settings.num_new_scenes_per_step)

    def _own_rows(self, batch: T) -> T:
        """This process's rows of a batch."""
        if self.processes.num_processes == 1:
            return batch
        # `map_rows` maps tensors and mappings of tensors; dataclasses inside a batch come first.
        nested = {
            name: getattr(batch, name, None) for name in ("observation", "questions", "cells")
        }
        parts = {name: self._own_rows(part) for name, part in nested.items() if part is not None}
        rows = map_rows(batch, lambda tensor: shard_rows(tensor, self.processes))
        return replace(rows, **parts)  # type: ignore[type-var]

    def object_loss(self, batch: GroundingBatch) -> tuple[Tensor, Metrics]:
        """Detection loss of phase 1; the language model is not run."""
        assert batch.cells is not None
        tokens = self.model.image_tokens(batch.observation.images)[..., : self.model.width]
        return self._detection_loss(tokens, batch.cells)

    def loss(self, batch: GroundingBatch | InstructionBatch) -> tuple[Tensor, Metrics]:
        """Loss of phase 2: plan head or question answering, plus weighted detection."""
        if isinstance(batch, InstructionBatch):
            return self._instruction_loss(batch)
        return self._question_loss(batch)

    def _instruction_loss(self, batch: InstructionBatch) -> tuple[Tensor, Metrics]:
        prefix = self.model.prefix(batch.observation)
        reduce_sum = self.processes.reduce_sum
        layers: list[Tensor] = []
        plan, distance = plan_loss(
            self.model, batch.observation, batch.numbers, layers, prefix, reduce_sum
        )
        # The last layer's input: queries of that layer can still read an object's location there.
        mention = grounded_phrase_loss(
            self.mention_head,
            layers[-2],
            self.model.num_prefix + batch.mentions,
            batch.places,
            batch.headings,
        )
        mention = mention * global_fraction(len(batch.numbers), reduce_sum)
        metrics = {
            "plan_loss": float(plan.detach()),
            "plan_error": float(distance) * LOCATION_TOKEN_METRES,
            "mention_loss": float(mention.detach()),
        }
        return self._with_detection(plan + mention, metrics, prefix, batch.cells)

    def _question_loss(self, batch: GroundingBatch) -> tuple[Tensor, Metrics]:
        assert batch.cells is not None
        prefix = self.model.prefix(batch.observation)
        answer, accuracy = answer_loss(
            self.model,
            batch.observation,
            batch.questions.answers,
            batch.questions.segments,
            prefix,
            self.processes.reduce_sum,
        )
        metrics = {"answer_loss": float(answer.detach()), "answer_accuracy": float(accuracy)}
        return self._with_detection(answer, metrics, prefix, batch.cells)

    def _with_detection(
        self, loss: Tensor, metrics: Metrics, prefix: Tensor, cells: CellTargets
    ) -> tuple[Tensor, Metrics]:
        """Add the weighted detection loss."""
        if not self.settings.detection_weight:
            return loss, metrics
        # The last token of the prefix is the proprioceptive state, the others are image tokens.
        tokens = prefix[:, : self.model.num_prefix - 1, : self.model.width]
        detection, detection_metrics = self._detection_loss(tokens, cells)
        return loss + self.settings.detection_weight * detection, metrics | detection_metrics

    def _detection_loss(self, tokens: Tensor, cells: CellTargets) -> tuple[Tensor, Metrics]:
        embeddings = self.model.backbone.word_embeddings
        return detection_loss(self.head, tokens, embeddings, cells, self.processes.reduce_sum)

    def state_dict(self) -> dict[str, Any]:
        """The state of the phase that `train` is in, for a resumed run."""
        phase, trainer = self._current
        return {
            "part": phase,
            "blocks": list(self.pool.blocks),
            "weights": self._trainable.state_dict(),
            **trainer.state_dict(),
        }

    def train(
        self,
        on_step: Callable[[str, int, Metrics], None],
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        """Run both phases, each with its own schedule; `on_step(phase, steps done, metrics)`.

        `saved` is the `state_dict` of a run to resume; phases before its own are skipped.
        """
        settings = self.settings
        fraction = settings.detection_fraction
        phases = (
            Phase("detection", fraction, 0, self.batch, self.object_loss),
            Phase("questions", 1 - fraction, settings.num_steps, self.step_batch, self.loss),
        )
        for phase in phases:
            if phase.fraction <= 0 or (saved is not None and saved_phase(saved) != phase.name):
                continue
            self._train_phase(phase, on_step, saved)
            saved = None

    def _train_phase(
        self,
        phase: Phase,
        on_step: Callable[[str, int, Metrics], None],
        saved: Mapping[str, Any] | None,
    ) -> None:
        settings = self.settings.phase_settings(phase.fraction)
        trainer = SupervisedTrainer(self._trainable, settings, processes=self.processes)
        if saved is not None:
            self._trainable.load_state_dict(saved["weights"])
            trainer.load_state_dict(saved)
        self._current = phase.name, trainer
        trainer.train(
            lambda step: [phase.batch(phase.first_step + step)],
            phase.loss,
            lambda step, metrics: on_step(phase.name, step, metrics),
        )


def saved_phase(state: Mapping[str, Any]) -> str:
    """The phase that a checkpoint was saved in."""
    return PHASES_OF_EARLIER_VERSIONS.get(state["part"], state["part"])
