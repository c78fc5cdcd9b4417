"""Questions about a scene as training text: words and location tokens, several of them packed
behind one image.

An answer is words, or numbers in metres or radians. A number becomes one location token (PaliGemma
and RT-2 write places so), from ids reserved at the end of the vocabulary, before the action tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vla.models.vocabulary import NUM_LOCATIONS, location_ids

LOCATION_RANGE = 0.32
"""Location tokens divide [-0.32, 0.32] (metres) evenly: 5 mm each. Angles (radians) use the same
tokens, divided by 5.
"""
RADIANS_PER_METRE = 5.0


class Question(NamedTuple):
    """A question and its answer: words, or numbers of which `unit` says what they are ("m" or
    "rad")."""

    text: str
    answer: str | tuple[float, ...]
    unit: str = ""


@dataclass(frozen=True)
class PackedQuestions:
    """Tokens [B, n] of several questions a row. `answer_table` marks what is predicted; `segments`
    numbers the questions."""

    tokens: Int[Tensor, "B n"]
    token_mask: Bool[Tensor, "B n"]
    answers: Bool[Tensor, "B n"]
    segments: Int[Tensor, "B n"]


class QuestionEncoder:
    """Writes questions in a tokenizer's ids; the text of each question is tokenised once and
    remembered."""

    def __init__(self, tokenizer: Any, vocabulary_size: int):
        self.tokenizer = tokenizer
        self.first_location = location_ids(vocabulary_size).start
        self._known: dict[str, list[int]] = {}

    def words(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._known[text]

    def locations(self, values: Sequence[float], unit: str) -> list[int]:
        """One token a number, the nearest of 128; what lies outside is clamped to the ends."""
        scale = RADIANS_PER_METRE if unit == "rad" else 1.0
        fraction = (np.asarray(values) / scale + LOCATION_RANGE) / (2 * LOCATION_RANGE)
        bins = np.clip(np.floor(fraction * NUM_LOCATIONS), 0, NUM_LOCATIONS - 1).astype(int)
        return [self.first_location + int(b) for b in bins]

    def numbers(self, tokens: Sequence[int], unit: str) -> list[float]:
        """The middles of the intervals that location tokens stand for; NaN for other tokens."""
        scale = RADIANS_PER_METRE if unit == "rad" else 1.0
        bins = [t - self.first_location for t in tokens]
        width = 2 * LOCATION_RANGE / NUM_LOCATIONS
        return [
            ((b + 0.5) * width - LOCATION_RANGE) * scale if 0 <= b < NUM_LOCATIONS else float("nan")
            for b in bins
        ]

    def words_after_start(self, text: str) -> list[int]:
        """A text as every prompt begins: the start token, then its words."""
        return [self.tokenizer.bos_token_id, *self.words(text)]

    def prompt(self, question: Question) -> list[int]:
        return self.words_after_start(question.text)

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B n"], Bool[Tensor, "B n"]]:
        """Rows of ids padded on the right to the longest, and which ids are real."""
        length = max(map(len, rows))
        tokens = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return tokens, mask

    def answer(self, question: Question) -> list[int]:
        if isinstance(question.answer, str):
            return [*self.words(" " + question.answer), self.tokenizer.eos_token_id]
        return [*self.locations(question.answer, question.unit), self.tokenizer.eos_token_id]

    def pack(self, rows: Sequence[Sequence[Question]]) -> PackedQuestions:
        """Every row's questions one behind the other, padded to the longest row."""
        written = [[(self.prompt(q), self.answer(q)) for q in row] for row in rows]
        length = max(sum(len(p) + len(a) for p, a in row) for row in written)
        tokens = np.full((len(rows), length), self.tokenizer.pad_token_id, dtype=np.int64)
        answers = np.zeros(tokens.shape, dtype=bool)
        mask = np.zeros(tokens.shape, dtype=bool)
        segments = np.full(tokens.shape, -1, dtype=np.int64)
        for i, row in enumerate(written):
            at = 0
            for number, (prompt, answer) in enumerate(row):
                end = at + len(prompt) + len(answer)
                tokens[i, at:end] = prompt + answer
                answers[i, at + len(prompt) : end] = True
                segments[i, at:end] = number
                mask[i, at:end] = True
                at = end
        return PackedQuestions(*(torch.from_numpy(a) for a in (tokens, mask, answers, segments)))
