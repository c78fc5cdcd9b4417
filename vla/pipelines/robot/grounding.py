"""Grounding: a tiny vision-language model learns to see by answering questions about rendered
scenes.

A ViT that only ever saw a few demonstrations does not learn to localise (measured: 0 % success).
What a pretrained VLM brings to a robot comes from here: places, colours, shapes and what is held,
in words and location tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vla.data.augment import random_light, random_shift
from vla.data.questions import LOCATION_RANGE, PackedQuestions, Question, QuestionEncoder
from vla.models.vlm import VisionLanguageModel
from vla.models.vocabulary import NUM_LOCATIONS
from vla.sft.detection import (
    CellTargets,
    DetectionHead,
    build_cell_targets,
    detection_loss,
    grounded_phrase_loss,
)
from vla.sft.loop import Metrics, SupervisedSettings, SupervisedTrainer
from vla.sft.losses import answer_loss, global_fraction, plan_loss
from vla.simulator import SceneSource
from vla.training.distributed import SINGLE_PROCESS, Processes, shard_rows
from vla.training.seed import derive_seed
from vla.types import Observation, T, map_rows


def ask_about(
    source: SceneSource, facts: Any, rng: np.random.Generator, count: int
) -> list[Question]:
    """Questions about one scene, as tensors are made of them."""
    return [Question(*question) for question in source.ask(facts, rng, count)]


@dataclass(frozen=True)
class GroundingBatch:
    """Pictures with packed questions: `observation.tokens` are the questions and answers. `cells`
    are for detection."""

    observation: Observation
    questions: PackedQuestions
    cells: CellTargets | None = None


def grounding_batch(
    images: Mapping[str, np.ndarray],
    proprio: np.ndarray,
    asked: Sequence[Sequence[Question]],
    encoder: QuestionEncoder,
) -> GroundingBatch:
    packed = encoder.pack(asked)
    pictures = {name: torch.from_numpy(image) for name, image in images.items()}
    observation = Observation(pictures, torch.from_numpy(proprio), packed.tokens, packed.token_mask)
    return GroundingBatch(observation, packed)


def augment_batch(batch: GroundingBatch, shift_pixels: int, light: float) -> GroundingBatch:
    images = {
        n: random_light(random_shift(i, shift_pixels), light)
        for n, i in batch.observation.images.items()
    }
    return replace(batch, observation=replace(batch.observation, images=images))


@dataclass(frozen=True)
class PlanBatch:
    """Pictures with instructions, and the numbers [B, a] that each comes down to, as location
    tokens from 0.

    `mentions` [B, m] are the tokens that end objects' names, `places` [B, m, 3] where those are
    (metres), `headings` [B, m, 2] how they are turned.
    """

    observation: Observation
    numbers: torch.Tensor
    mentions: torch.Tensor
    places: torch.Tensor
    headings: torch.Tensor
    cells: CellTargets


class ScenePool:
    """Scenes kept in memory and asked about several times; new ones replace the oldest when
    `capacity` is reached."""

    def __init__(
        self, source: SceneSource, first_seed: int, capacity: int, cameras: Sequence[str], grid: int
    ):
        self.source, self.next_seed, self.capacity = source, first_seed, capacity
        self.cameras, self.grid = cameras, grid
        self.size = 0
        self._images: dict[str, np.ndarray] = {}
        self._proprio = np.zeros((capacity, 0), dtype=np.float32)
        self._facts: list[Any] = [None] * capacity
        self._cells: tuple[np.ndarray, ...] = ()
        self.added = 0
        self.blocks: list[int] = []

    def add(self, count: int) -> None:
        seen, facts = self.source.scenes(range(self.next_seed, self.next_seed + count))
        self.next_seed += count
        if not self._images:
            self._images = {
                n: np.empty((self.capacity, *i.shape[1:]), np.uint8) for n, i in seen.images.items()
            }
            self._proprio = np.empty((self.capacity, seen.proprio.shape[1]), np.float32)
        slots = (self.added + np.arange(count)) % self.capacity
        for name, image in seen.images.items():
            self._images[name][slots] = image
        self._proprio[slots] = seen.proprio
        for slot, fact in zip(slots, facts, strict=True):
            self._facts[slot] = fact
        seen_objects = [self.source.sightings(fact) for fact in facts]
        cells = build_cell_targets(seen_objects, self.cameras, self.grid)
        if not self._cells:
            self._cells = tuple(
                np.empty((self.capacity, *values.shape[1:]), values.dtype) for values in cells
            )
        for kept, values in zip(self._cells, cells, strict=True):
            kept[slots] = values
        self.added += count
        self.blocks.append(count)
        self.size = min(self.added, self.capacity)

    def restore(self, blocks: Sequence[int]) -> None:
        """Hold what was held after these blocks were added: by rounding, a scene depends on its
        place in a block."""
        for count in blocks:
            if self.added + count > sum(blocks) - self.capacity:
                self.add(count)
                continue
            self.next_seed, self.added = self.next_seed + count, self.added + count
            self.blocks.append(count)

    def proprio(self) -> np.ndarray:
        return self._proprio[: self.size]

    def draw(
        self, rows: int, count: int, rng: np.random.Generator, encoder: QuestionEncoder
    ) -> GroundingBatch:
        """`rows` scenes with `count` questions each."""
        chosen = rng.integers(self.size, size=rows)
        asked = [ask_about(self.source, self._facts[i], rng, count) for i in chosen]
        batch = grounding_batch(
            {n: i[chosen] for n, i in self._images.items()}, self._proprio[chosen], asked, encoder
        )
        return replace(batch, cells=self._targets(chosen))

    def plans(self, rows: int, rng: np.random.Generator, encoder: QuestionEncoder) -> PlanBatch:
        """`rows` scenes with an instruction each."""
        chosen = rng.integers(self.size, size=rows)
        plans = [self.source.plan(self._facts[i], rng) for i in chosen]
        tokens, mask = encoder.pad([encoder.words_after_start(plan.text) for plan in plans])
        mentions = [
            [len(encoder.words_after_start(upto)) - 1 for upto, *_ in plan.mentions]
            for plan in plans
        ]
        where = torch.tensor([[place for _, place, _ in plan.mentions] for plan in plans])
        turned = torch.tensor([[heading for *_, heading in plan.mentions] for plan in plans])
        pictures = {n: torch.from_numpy(i[chosen]) for n, i in self._images.items()}
        observation = Observation(pictures, torch.from_numpy(self._proprio[chosen]), tokens, mask)
        numbers = (
            torch.tensor([encoder.locations(plan.numbers, "m") for plan in plans])
            - encoder.first_location
        )
        return PlanBatch(
            observation, numbers, torch.tensor(mentions), where, turned, self._targets(chosen)
        )

    def _targets(self, chosen: np.ndarray) -> CellTargets:
        return CellTargets(*(torch.from_numpy(kept[chosen]) for kept in self._cells))


@dataclass(frozen=True)
class QuestionAnswers:
    """Answers to held-out questions by kind: whether the words were right, and how far numbers were
    off (m or rad)."""

    right: Mapping[str, Sequence[bool]]
    errors: Mapping[str, Sequence[float]]

    @property
    def outcomes(self) -> list[bool]:
        """Of all questions that are answered in words, in an order that depends on the questions
        only."""
        return [outcome for kind in sorted(self.right) for outcome in self.right[kind]]

    def means(self) -> dict[str, float]:
        """Share of right answers, and mean error, by kind."""
        accuracy = {
            f"accuracy/{kind}": float(np.mean(values))
            for kind, values in sorted(self.right.items())
        }
        return accuracy | {
            f"error/{kind}": float(np.mean(values)) for kind, values in sorted(self.errors.items())
        }


@torch.no_grad()
def answer_questions(
    model: VisionLanguageModel,
    source: SceneSource,
    encoder: QuestionEncoder,
    seeds: Sequence[int],
    rng: np.random.Generator,
    kind_of: Callable[[str], str],
    rows_at_once: int = 128,
) -> QuestionAnswers:
    """One question about each scene, answered by the model itself: words count when they are
    exactly right."""
    model.eval()
    right: dict[str, list[bool]] = {}
    errors: dict[str, list[float]] = {}
    for at in range(0, len(seeds), rows_at_once):
        seen, facts = source.scenes(seeds[at : at + rows_at_once])
        asked = [ask_about(source, fact, rng, 1)[0] for fact in facts]
        tokens, mask = encoder.pad([encoder.prompt(question) for question in asked])
        pictures = {name: torch.from_numpy(image) for name, image in seen.images.items()}
        observation = Observation(pictures, torch.from_numpy(seen.proprio), tokens, mask)
        written = model.generate(
            observation, max_new_tokens=6, end_token=encoder.tokenizer.eos_token_id
        )
        for question, answer in zip(asked, written.tolist(), strict=True):
            kind = kind_of(question.text)
            if isinstance(question.answer, str):
                expected = encoder.answer(question)
                right.setdefault(kind, []).append(answer[: len(expected)] == expected)
            else:
                numbers = encoder.numbers(answer[: len(question.answer)], question.unit)
                wrong = np.abs(np.subtract(numbers, question.answer))
                errors.setdefault(kind, []).append(float(np.nan_to_num(wrong, nan=1.0).mean()))
    return QuestionAnswers(right, errors)


@dataclass(frozen=True)
class GroundingSettings:
    """How a model is grounded.

    The first `detection_fraction` of the work trains the vision tower alone to name what is in its
    cells: a step costs a third of one with questions, and questions only teach where once patches
    say what. After it, `plan_fraction` of the steps ask the plan head what an instruction comes down
    to (where its objects are from the gripper), the others ask questions.
    """

    num_steps: int
    max_seconds: float | None
    batch_size: int
    questions_per_scene: int
    pool_size: int
    num_new_scenes_per_step: int
    detection_fraction: float
    detection_weight: float
    plan_fraction: float
    learning_rate: float
    muon_learning_rate: float
    weight_decay: float
    light: float


class Grounding:
    """Grounds a model; `train` does the whole of it, from random or from earlier weights."""

    def __init__(
        self,
        model: VisionLanguageModel,
        encoder: QuestionEncoder,
        source: SceneSource,
        settings: GroundingSettings,
        seed: int,
        processes: Processes = SINGLE_PROCESS,
    ):
        self.model, self.encoder, self.source, self.settings, self.seed = (
            model,
            encoder,
            source,
            settings,
            seed,
        )
        self.processes = processes
        words = [encoder.words(f" {name}") for name in source.sighting_names]
        self.head = DetectionHead(model.width, words)
        self.mention_head = torch.nn.Sequential(
            torch.nn.LayerNorm(model.width), torch.nn.Linear(model.width, 5)
        )
        self._all = torch.nn.ModuleList([self.model, self.head, self.mention_head])
        grid = round(model.vision.num_patches**0.5)
        first_seed = derive_seed(seed, "grounding") % FIRST_FREE_SEED + FIRST_FREE_SEED
        self.pool = ScenePool(source, first_seed, settings.pool_size, model.cameras, grid)

    def fill(self, count: int, rows_at_once: int = 128) -> None:
        """Render the first `count` scenes."""
        while self.pool.size < min(count, self.settings.pool_size):
            self.pool.add(min(rows_at_once, count - self.pool.size))

    def batch(self, step: int) -> GroundingBatch:
        """The batch of a step, after `num_new_scenes_per_step` new scenes; of many processes, this one's
        share of its rows."""
        settings = self.settings
        if settings.num_new_scenes_per_step:
            self.pool.add(settings.num_new_scenes_per_step)
        rng = np.random.default_rng([self.seed, step])
        batch = augment_batch(
            self.pool.draw(settings.batch_size, settings.questions_per_scene, rng, self.encoder),
            0,
            settings.light,
        )
        return self._own(batch)

    def sighting_loss(self, batch: GroundingBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """Detection alone: the language model is not run."""
        assert batch.cells is not None
        tokens = self.model.image_tokens(batch.observation.images)
        return detection_loss(
            self.head,
            tokens,
            self.model.backbone.word_embeddings,
            batch.cells,
            self.processes.reduce_sum,
        )

    def is_plan_step(self, step: int) -> bool:
        """Plan steps are spread evenly among the others."""
        share = self.settings.plan_fraction
        return int((step + 1) * share) > int(step * share)

    def plan_batch(self, step: int) -> PlanBatch:
        """Instructions about scenes of the pool."""
        settings = self.settings
        if settings.num_new_scenes_per_step:
            self.pool.add(settings.num_new_scenes_per_step)
        rng = np.random.default_rng([self.seed, step])
        batch = self.pool.plans(settings.batch_size, rng, self.encoder)
        images = {n: random_light(i, settings.light) for n, i in batch.observation.images.items()}
        return self._own(replace(batch, observation=replace(batch.observation, images=images)))

    def _own(self, batch: T) -> T:
        """The rows of a batch that this process handles."""
        if self.processes.num_processes == 1:
            return batch
        within = {
            name: getattr(batch, name, None) for name in ("observation", "questions", "cells")
        }
        parts = {name: self._own(part) for name, part in within.items() if part is not None}
        rows = map_rows(batch, lambda tensor: shard_rows(tensor, self.processes))
        return replace(rows, **parts)  # type: ignore[type-var]

    def mixed_batch(self, step: int) -> GroundingBatch | PlanBatch:
        return self.plan_batch(step) if self.is_plan_step(step) else self.batch(step)

    def loss(self, batch: GroundingBatch | PlanBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """Instructions come down to numbers; or questions, with detection by its weight."""
        if isinstance(batch, PlanBatch):
            layers: list[torch.Tensor] = []
            prefix = self.model.prefix(batch.observation)
            reduce_sum = self.processes.reduce_sum
            plan, distance = plan_loss(
                self.model, batch.observation, batch.numbers, layers, prefix, reduce_sum
            )
            positions = self.model.num_prefix + batch.mentions
            mention = grounded_phrase_loss(
                self.mention_head, layers[-2], positions, batch.places, batch.headings
            )
            mention = mention * global_fraction(len(batch.numbers), reduce_sum)
            width = 2 * LOCATION_RANGE / NUM_LOCATIONS
            metrics = {"plan_loss": float(plan.detach()), "plan_error": float(distance) * width}
            metrics["mention_loss"] = float(mention.detach())
            return self._with_sightings(plan + mention, metrics, prefix, batch.cells)
        assert batch.cells is not None
        prefix, questions = self.model.prefix(batch.observation), batch.questions
        answer, accuracy = answer_loss(
            self.model,
            batch.observation,
            questions.answers,
            questions.segments,
            prefix,
            self.processes.reduce_sum,
        )
        metrics = {"answer_loss": float(answer.detach()), "answer_accuracy": float(accuracy)}
        return self._with_sightings(answer, metrics, prefix, batch.cells)

    def _with_sightings(
        self,
        loss: torch.Tensor,
        metrics: dict[str, float],
        prefix: torch.Tensor,
        cells: CellTargets,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Detection beside another loss, by its weight."""
        if not self.settings.detection_weight:
            return loss, metrics
        tokens = prefix[:, : self.model.num_prefix - 1]
        seen, seen_metrics = detection_loss(
            self.head, tokens, self.model.backbone.word_embeddings, cells, self.processes.reduce_sum
        )
        return loss + self.settings.detection_weight * seen, metrics | seen_metrics

    def state_dict(self) -> dict[str, Any]:
        """Where `train` stands, for another process to go on from."""
        part, trainer = self._under_way
        kept = {"part": part, "blocks": list(self.pool.blocks), "weights": self._all.state_dict()}
        return {**kept, **trainer.state_dict()}

    def train(
        self,
        on_step: Callable[[str, int, Metrics], None],
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        """Both parts, each with its own schedule, from where `saved` stands; `on_step(part, steps
        done, metrics)`."""
        settings, share = self.settings, self.settings.detection_fraction
        parts = (
            ("sighting", self.sighting_loss, self.batch, share),
            ("questions", self.loss, self.mixed_batch, 1 - share),
        )
        for part, loss_of, make, amount in parts:
            if amount <= 0 or (saved is not None and saved["part"] != part):
                continue
            trainer = SupervisedTrainer(
                self._all, self._part_settings(amount), processes=self.processes
            )
            if saved is not None:
                self._all.load_state_dict(saved["weights"])
                trainer.load_state_dict(saved)
                saved = None
            self._under_way = part, trainer
            offset = 0 if part == "sighting" else settings.num_steps
            trainer.train(
                lambda step, make=make, offset=offset: [make(offset + step)],
                loss_of,
                lambda step, metrics, part=part: on_step(part, step, metrics),
            )

    def _part_settings(self, amount: float) -> SupervisedSettings:
        """Settings of a part that is this share of the whole."""
        settings = self.settings
        num_steps = max(1, round(amount * settings.num_steps))
        return SupervisedSettings(
            num_steps=num_steps,
            batch_size=settings.batch_size,
            max_seconds=None if settings.max_seconds is None else amount * settings.max_seconds,
            warmup_steps=round(min(0.1, WARMUP_STEPS / num_steps) * num_steps),
            optimizer="muon",
            learning_rate=settings.learning_rate,
            muon_learning_rate=settings.muon_learning_rate,
            weight_decay=settings.weight_decay,
            max_grad_norm=1.0,
            learning_rate_name="grounding.learning_rate",
        )


WARMUP_STEPS = 50
FIRST_FREE_SEED = 10**9
"""Scenes for grounding come from seeds from here on: no episode of training or evaluation starts
there."""
