"""Grounding: a tiny vision-language model learns to see by answering questions about rendered scenes.

A ViT that only ever saw a few demonstrations does not learn to localise (measured: 0 % success). What a pretrained VLM brings
to a robot comes from here: places, colours, shapes and what is held, in words and location tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from vla.data.augment import random_light, random_shift
from vla.data.observations import Seen
from vla.data.questions import PackedQuestions, Question, QuestionEncoder
from vla.models.vlm import VisionLanguageModel
from vla.sft.sightings import CellTargets, cell_arrays
from vla.types import Observation


class SceneSource(Protocol):
    """The simulator's side: rendered scenes by seed, and questions about them. Scripts build it from `sim`."""

    def scenes(self, seeds: Sequence[int]) -> tuple[Seen, Sequence[Any]]:
        """Pictures and facts of the scenes that the seeds stand for."""

    def ask(self, facts: Any, rng: np.random.Generator, count: int) -> Sequence[Question]:
        """Questions about one scene."""

    @property
    def sighting_names(self) -> Sequence[str]:
        """What the kinds of objects that can be seen are called."""

    def sightings(self, facts: Any) -> Mapping[str, Sequence[Any]]:
        """By camera, the objects in the picture: (right, down, kind, place), see `vla.sft.sightings`."""


@dataclass(frozen=True)
class GroundingBatch:
    """Pictures with packed questions: `observation.tokens` are the questions and answers. `cells` are for detection."""

    observation: Observation
    questions: PackedQuestions
    cells: CellTargets | None = None


def grounding_batch(
    images: Mapping[str, np.ndarray], proprio: np.ndarray, asked: Sequence[Sequence[Question]], encoder: QuestionEncoder
) -> GroundingBatch:
    packed = encoder.pack(asked)
    pictures = {name: torch.from_numpy(image) for name, image in images.items()}
    observation = Observation(pictures, torch.from_numpy(proprio), packed.tokens, packed.token_mask)
    return GroundingBatch(observation, packed)


def augmented(batch: GroundingBatch, shift_pixels: int, light: float) -> GroundingBatch:
    images = {n: random_light(random_shift(i, shift_pixels), light) for n, i in batch.observation.images.items()}
    return replace(batch, observation=replace(batch.observation, images=images))


class ScenePool:
    """Scenes kept in memory and asked about several times; new ones replace the oldest when `capacity` is reached."""

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
        self._added = 0

    def add(self, count: int) -> None:
        seen, facts = self.source.scenes(range(self.next_seed, self.next_seed + count))
        self.next_seed += count
        if not self._images:
            self._images = {n: np.empty((self.capacity, *i.shape[1:]), np.uint8) for n, i in seen.images.items()}
            self._proprio = np.empty((self.capacity, seen.proprio.shape[1]), np.float32)
        slots = (self._added + np.arange(count)) % self.capacity
        for name, image in seen.images.items():
            self._images[name][slots] = image
        self._proprio[slots] = seen.proprio
        for slot, fact in zip(slots, facts, strict=True):
            self._facts[slot] = fact
        seen_objects = [self.source.sightings(fact) for fact in facts]
        cells = cell_arrays(seen_objects, self.cameras, self.grid)
        if not self._cells:
            self._cells = tuple(np.empty((self.capacity, *values.shape[1:]), values.dtype) for values in cells)
        for kept, values in zip(self._cells, cells, strict=True):
            kept[slots] = values
        self._added += count
        self.size = min(self._added, self.capacity)

    def proprio(self) -> np.ndarray:
        return self._proprio[: self.size]

    def draw(self, rows: int, count: int, rng: np.random.Generator, encoder: QuestionEncoder) -> GroundingBatch:
        """`rows` scenes with `count` questions each."""
        chosen = rng.integers(self.size, size=rows)
        asked = [self.source.ask(self._facts[i], rng, count) for i in chosen]
        batch = grounding_batch({n: i[chosen] for n, i in self._images.items()}, self._proprio[chosen], asked, encoder)
        return replace(batch, cells=CellTargets(*(torch.from_numpy(kept[chosen]) for kept in self._cells)))


@torch.no_grad()
def answer_accuracy(
    model: VisionLanguageModel,
    source: SceneSource,
    encoder: QuestionEncoder,
    seeds: Sequence[int],
    rng: np.random.Generator,
    kind_of: Callable[[str], str],
    rows_at_once: int = 128,
) -> dict[str, float]:
    """Held-out answers written by the model itself: share of exact words, mean error of numbers (m or rad), by kind of question."""
    model.eval()
    words: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {}
    for at in range(0, len(seeds), rows_at_once):
        seen, facts = source.scenes(seeds[at : at + rows_at_once])
        asked = [source.ask(fact, rng, 1)[0] for fact in facts]
        prompts = [encoder.prompt(question) for question in asked]
        length = max(map(len, prompts))
        tokens = torch.full((len(prompts), length), encoder.tokenizer.pad_token_id)
        mask = torch.zeros(len(prompts), length, dtype=torch.bool)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt)] = torch.tensor(prompt)
            mask[i, : len(prompt)] = True
        pictures = {name: torch.from_numpy(image) for name, image in seen.images.items()}
        observation = Observation(pictures, torch.from_numpy(seen.proprio), tokens, mask)
        written = model.generate(observation, max_new_tokens=6, end_token=encoder.tokenizer.eos_token_id)
        for question, answer in zip(asked, written.tolist(), strict=True):
            kind = kind_of(question.text)
            if isinstance(question.answer, str):
                expected = encoder.answer(question)
                words.setdefault(kind, []).append(float(answer[: len(expected)] == expected))
            else:
                numbers = encoder.numbers(answer[: len(question.answer)], question.unit)
                wrong = np.abs(np.subtract(numbers, question.answer))
                errors.setdefault(kind, []).append(float(np.nan_to_num(wrong, nan=1.0).mean()))
    accuracy = {f"accuracy/{kind}": float(np.mean(v)) for kind, v in sorted(words.items())}
    return accuracy | {f"error/{kind}": float(np.mean(v)) for kind, v in sorted(errors.items())}
