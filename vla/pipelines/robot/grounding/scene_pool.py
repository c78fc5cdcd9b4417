"""Pool of rendered scenes, and the batches of questions and instructions drawn from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.data.augment import random_light, random_shift
from vla.data.questions import PackedQuestions, Question, QuestionEncoder
from vla.sft.detection import CellTargets, build_cell_targets
from vla.simulator import SceneFacts, SceneSource
from vla.types import Observation

FIRST_SCENE_SEED = 10**9
"""First seed of grounding scenes. Episodes of training and evaluation start from smaller seeds."""


def sample_questions(
    source: SceneSource, facts: SceneFacts, rng: np.random.Generator, count: int
) -> list[Question]:
    """Sample `count` questions about one scene."""
    return [Question(*question) for question in source.sample_questions(facts, rng, count)]


@dataclass(frozen=True)
class GroundingBatch:
    """Scenes with packed questions; `observation.tokens` holds questions and answers.

    `cells` are the detection targets, None where detection is not trained.
    """

    observation: Observation
    questions: PackedQuestions
    cells: CellTargets | None = None


@dataclass(frozen=True)
class InstructionBatch:
    """Scenes with one instruction each, for the plan head.

    `numbers` [B, a] are the targets as location tokens from 0. `mentions` [B, m] are the last
    tokens of object names. `places` [B, m, 3] are the positions of those objects (metres from the
    gripper), and `headings` [B, m, 2] their orientations (cosine, sine).
    """

    observation: Observation
    numbers: Int[Tensor, "B a"]
    mentions: Int[Tensor, "B m"]
    places: Float[Tensor, "B m 3"]
    headings: Float[Tensor, "B m 2"]
    cells: CellTargets


def make_question_batch(
    images: Mapping[str, np.ndarray],
    proprio: np.ndarray,
    questions: Sequence[Sequence[Question]],
    encoder: QuestionEncoder,
) -> GroundingBatch:
    """Make a batch of scenes with several questions each."""
    packed = encoder.pack(questions)
    tensors = {name: torch.from_numpy(image) for name, image in images.items()}
    observation = Observation(tensors, torch.from_numpy(proprio), packed.tokens, packed.token_mask)
    return GroundingBatch(observation, packed)


def augment_observation(observation: Observation, shift_pixels: int, light: float) -> Observation:
    """Shift the images by up to `shift_pixels` and change their light by up to `light`."""
    images = {
        name: random_light(random_shift(image, shift_pixels), light)
        for name, image in observation.images.items()
    }
    return replace(observation, images=images)


class ScenePool:
    """Rendered scenes in memory, each used for several batches.

    New scenes replace the oldest ones once the pool holds `capacity` of them. `next_seed` is the
    seed of the next scene. `added` counts all scenes rendered so far, and `blocks` holds their
    numbers by call of `add`.
    """

    def __init__(
        self, source: SceneSource, first_seed: int, capacity: int, cameras: Sequence[str], grid: int
    ):
        self.source = source
        self.next_seed = first_seed
        self.capacity = capacity
        self.cameras = cameras
        self.grid = grid
        self.size = 0
        self.added = 0
        self.blocks: list[int] = []
        self._images: dict[str, np.ndarray] = {}
        self._proprio = np.zeros((capacity, 0), dtype=np.float32)
        self._facts: list[SceneFacts] = [None] * capacity
        self._cells: tuple[np.ndarray, ...] = ()

    def add(self, count: int) -> None:
        """Render the next `count` scenes."""
        observation, facts = self.source.scenes(range(self.next_seed, self.next_seed + count))
        self.next_seed += count
        cells = build_cell_targets(
            [self.source.detected_objects(fact) for fact in facts], self.cameras, self.grid
        )
        if not self._images:
            self._images = {name: self._storage(i) for name, i in observation.images.items()}
            self._proprio = self._storage(observation.proprio)
            self._cells = tuple(map(self._storage, cells))
        slots = (self.added + np.arange(count)) % self.capacity
        for name, image in observation.images.items():
            self._images[name][slots] = image
        self._proprio[slots] = observation.proprio
        for storage, values in zip(self._cells, cells, strict=True):
            storage[slots] = values
        for slot, fact in zip(slots, facts, strict=True):
            self._facts[slot] = fact
        self.added += count
        self.blocks.append(count)
        self.size = min(self.added, self.capacity)

    def _storage(self, values: np.ndarray) -> np.ndarray:
        """An empty array for `capacity` rows like those of `values`."""
        return np.empty((self.capacity, *values.shape[1:]), values.dtype)

    def restore(self, blocks: Sequence[int]) -> None:
        """Render again the scenes that a pool holds after blocks of these sizes.

        Rounding makes a scene depend on its row in a block, so whole blocks are rendered. Blocks
        that later ones have replaced are skipped.
        """
        for count in blocks:
            if self.added + count > sum(blocks) - self.capacity:
                self.add(count)
                continue
            self.next_seed += count
            self.added += count
            self.blocks.append(count)

    def proprio(self) -> Float[np.ndarray, "n s"]:
        """Proprioceptive values of all scenes in the pool."""
        return self._proprio[: self.size]

    def draw_questions(
        self, rows: int, count: int, rng: np.random.Generator, encoder: QuestionEncoder
    ) -> GroundingBatch:
        """Draw `rows` scenes with `count` questions each."""
        chosen = rng.integers(self.size, size=rows)
        questions = [sample_questions(self.source, self._facts[i], rng, count) for i in chosen]
        images = {name: image[chosen] for name, image in self._images.items()}
        batch = make_question_batch(images, self._proprio[chosen], questions, encoder)
        return replace(batch, cells=self._cell_targets(chosen))

    def draw_instructions(
        self, rows: int, rng: np.random.Generator, encoder: QuestionEncoder
    ) -> InstructionBatch:
        """Draw `rows` scenes with one instruction each."""
        chosen = rng.integers(self.size, size=rows)
        drawn = [self.source.sample_instruction(self._facts[i], rng) for i in chosen]
        tokens, mask = encoder.pad([encoder.words_after_start(each.text) for each in drawn])
        # The text up to the end of a name has as many tokens as the index of its last one plus 1.
        mentions = [
            [len(encoder.words_after_start(text)) - 1 for text, _, _ in each.mentions]
            for each in drawn
        ]
        locations = torch.tensor([encoder.locations(each.numbers, "m") for each in drawn])
        images = {name: torch.from_numpy(image[chosen]) for name, image in self._images.items()}
        return InstructionBatch(
            Observation(images, torch.from_numpy(self._proprio[chosen]), tokens, mask),
            numbers=locations - encoder.first_location,
            mentions=torch.tensor(mentions),
            places=torch.tensor([[place for _, place, _ in each.mentions] for each in drawn]),
            headings=torch.tensor([[heading for _, _, heading in each.mentions] for each in drawn]),
            cells=self._cell_targets(chosen),
        )

    def _cell_targets(self, chosen: np.ndarray) -> CellTargets:
        return CellTargets(*(torch.from_numpy(values[chosen]) for values in self._cells))
