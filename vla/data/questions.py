"""Questions about a scene as training text: words and location tokens, packed behind one image.

An answer is words, or numbers in metres or radians. A number becomes one location token, as in
PaliGemma and RT-2. Location ids are reserved at the end of the vocabulary, before the action
tokens.
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
    """A question and its answer: words, or numbers in `unit` ("m" or "rad")."""

    text: str
    answer: str | tuple[float, ...]
    unit: str = ""


@dataclass(frozen=True)
class PackedQuestions:
    """Tokens [B, n] of several questions a row.

    `answers` marks the tokens to predict; `segments` numbers the questions, -1 for padding.
    """

    tokens: Int[Tensor, "B n"]
    token_mask: Bool[Tensor, "B n"]
    answers: Bool[Tensor, "B n"]
    segments: Int[Tensor, "B n"]


class QuestionEncoder:
    """An encoder of questions as token ids; the tokens of each text are cached."""

    def __init__(self, tokenizer: Any, vocabulary_size: int):
        self.tokenizer = tokenizer
        self.first_location = location_ids(vocabulary_size).start
        self._token_cache: dict[str, list[int]] = {}

    def words(self, text: str) -> list[int]:
        if text not in self._token_cache:
            self._token_cache[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._token_cache[text]

    def locations(self, values: Sequence[float], unit: str) -> list[int]:
        """One token a number, the nearest of 128 bins; values outside the range are clamped."""
        scale = RADIANS_PER_METRE if unit == "rad" else 1.0
        fraction = (np.asarray(values) / scale + LOCATION_RANGE) / (2 * LOCATION_RANGE)
        bins = np.clip(np.floor(fraction * NUM_LOCATIONS), 0, NUM_LOCATIONS - 1).astype(int)
        return [self.first_location + int(b) for b in bins]

    def numbers(self, tokens: Sequence[int], unit: str) -> list[float]:
        """The centres of the location tokens' bins, metres or radians; NaN for other tokens."""
        scale = RADIANS_PER_METRE if unit == "rad" else 1.0
        bins = [t - self.first_location for t in tokens]
        width = 2 * LOCATION_RANGE / NUM_LOCATIONS
        return [
            ((b + 0.5) * width - LOCATION_RANGE) * scale if 0 <= b < NUM_LOCATIONS else float("nan")
            for b in bins
        ]

    def words_after_start(self, text: str) -> list[int]:
        """The start token followed by the tokens of a text, as every prompt begins."""
        return [self.tokenizer.bos_token_id, *self.words(text)]

    def prompt(self, question: Question) -> list[int]:
        return self.words_after_start(question.text)

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B n"], Bool[Tensor, "B n"]]:
        """Rows of ids right-padded to the longest, and the mask of real ids."""
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
        """The questions of every row concatenated, padded to the longest row."""
        encoded = [[(self.prompt(q), self.answer(q)) for q in row] for row in rows]
        length = max(sum(len(p) + len(a) for p, a in row) for row in encoded)
        tokens = np.full((len(rows), length), self.tokenizer.pad_token_id, dtype=np.int64)
        answers = np.zeros(tokens.shape, dtype=bool)
        mask = np.zeros(tokens.shape, dtype=bool)
        segments = np.full(tokens.shape, -1, dtype=np.int64)
        for i, row in enumerate(encoded):
            begin = 0
            for number, (prompt, answer) in enumerate(row):
                end = begin + len(prompt) + len(answer)
                tokens[i, begin:end] = prompt + answer
                answers[i, begin + len(prompt) : end] = True
                segments[i, begin:end] = number
                mask[i, begin:end] = True
                begin = end
        return PackedQuestions(
            tokens=torch.from_numpy(tokens),
            token_mask=torch.from_numpy(mask),
            answers=torch.from_numpy(answers),
            segments=torch.from_numpy(segments),
        )
