"""FAST (Pertsch et al. 2025): action chunks as few tokens, by a cosine transform and byte-pair
encoding.

Every dimension of a normalised chunk [H, a] is transformed along time (orthonormal DCT-II),
multiplied by `scale`, and rounded. The integers are ordered by frequency, all dimensions of a
frequency together. Byte-pair encoding replaces frequent runs of integers by one token; its merges
are fitted to the demonstrations. Only rounding loses information: for each dimension the error of a
chunk is at most sqrt(H) / (2 scale) in Euclidean norm, on the normalised scale.

A chunk always has H a integers, and every integer is a token too. So a sequence ends when its
tokens stand for H a integers, and tokens with more integers than are left are invalid there. No end
token is needed, and no incomplete sequence can occur.

Shapes: `B` or `N` chunks, `H` control steps, `A` action dimensions, `a` of them active, `S` = H a
integers, `V` tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.fft import dct, idct
from torch import Tensor

from vla.actions.action_statistics import MAX_NORMALIZED
from vla.actions.normalize import ActionNormalizer, fit_normalizer

Pair = tuple[int, int]
OUTLIER_TOKEN_FRACTION = 3 / 8
"""Fraction of the tokens that a chunk of rare jumps may span on either side of 0."""


@dataclass(frozen=True)
class FastCode:
    """A fitted code: tokens 0 to `high - low` are the integers from `low` on, then one token for
    each pair in `merges`.

    Integers outside the fitted range are clipped to it.
    """

    normalizer: ActionNormalizer
    chunk: int
    scale: float
    low: int
    high: int
    merges: tuple[Pair, ...]

    @property
    def constants(self) -> tuple[float, ...]:
        """Values of the constant dimensions."""
        return self.normalizer.constants

    @property
    def num_symbols(self) -> int:
        """Integers of a chunk, H a: the largest number of its tokens."""
        return self.chunk * self.normalizer.num_active

    @property
    def num_tokens(self) -> int:
        return len(self.expansions)

    @cached_property
    def expansions(self) -> tuple[tuple[int, ...], ...]:
        """The integers of each token."""
        expansions: list[tuple[int, ...]] = [(value,) for value in range(self.low, self.high + 1)]
        for left, right in self.merges:
            expansions.append(expansions[left] + expansions[right])
        return tuple(expansions)

    @cached_property
    def _ranks(self) -> dict[Pair, int]:
        return {pair: rank for rank, pair in enumerate(self.merges)}

    def lengths(self) -> Int[Tensor, "V"]:
        """Number of integers of each token."""
        return torch.tensor([len(e) for e in self.expansions])

    def integers(self, actions: Float[np.ndarray, "N H A"]) -> Int[np.ndarray, "N S"]:
        """Rounded, clipped coefficients of chunks, lowest frequencies first."""
        values = self.normalizer.encode(
            torch.from_numpy(np.asarray(actions, dtype=np.float32))
        ).numpy()
        return np.clip(cosine_coefficients(values, self.scale), self.low, self.high)

    def encode(
        self, actions: Float[Tensor, "B H A"]
    ) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
        """Tokens of chunks, padded with 0 to `num_symbols`, and a mask of the real ones."""
        rows = [
            apply_merges((row - self.low).tolist(), self._ranks, self.high - self.low + 1)
            for row in self.integers(actions.cpu().numpy())
        ]
        tokens = torch.zeros(len(rows), self.num_symbols, dtype=torch.long)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        mask = torch.arange(self.num_symbols) < torch.tensor([len(row) for row in rows])[:, None]
        return tokens.to(actions.device), mask.to(actions.device)

    def decode(
        self, tokens: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B H A"]:
        """Chunks of complete token sequences."""
        rows = [
            [value for token in row[real].tolist() for value in self.expansions[token]]
            for row, real in zip(tokens.cpu(), mask.cpu(), strict=True)
        ]
        ordered = np.asarray(rows, dtype=np.float64).reshape(len(rows), self.chunk, -1) / self.scale
        values = torch.from_numpy(idct(ordered, axis=1, norm="ortho").astype(np.float32))
        return self.normalizer.decode(values.to(tokens.device))

    def to_dict(self) -> dict[str, Any]:
        return {
            "normalizer": self.normalizer.to_dict(),
            "chunk": self.chunk,
            "scale": self.scale,
            "low": self.low,
            "high": self.high,
            "merges": self.merges,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FastCode:
        normalizer = ActionNormalizer.from_dict(values["normalizer"])
        merges = tuple((int(left), int(right)) for left, right in values["merges"])
        return cls(
            normalizer, values["chunk"], values["scale"], values["low"], values["high"], merges
        )


def cosine_coefficients(values: Float[np.ndarray, "N H a"], scale: float) -> Int[np.ndarray, "N S"]:
    """Rounded cosine coefficients of normalised chunks, ordered by frequency."""
    transformed = dct(values.astype(np.float64), axis=1, norm="ortho")
    return np.rint(transformed * scale).astype(np.int64).reshape(len(values), -1)


def fit_fast(actions: Float[np.ndarray, "N H A"], num_tokens: int, scale: float) -> FastCode:
    """The code of demonstrated chunks, with `num_tokens` tokens, or fewer where no pair occurs
    twice.

    Raises:
        ValueError: the integers alone need more than `num_tokens` tokens.
    """
    chunk = actions.shape[1]
    normalizer = fit_normalizer(
        actions.reshape(-1, actions.shape[-1]), max_normalized_value(num_tokens, scale, chunk)
    )
    values = normalizer.encode(torch.from_numpy(np.asarray(actions, dtype=np.float32))).numpy()
    integers = cosine_coefficients(values, scale)
    low = int(integers.min())
    high = int(integers.max())
    room = num_tokens - (high - low + 1)
    if room < 0:
        widest = normalizer.active[int(np.abs(integers).max(0).argmax()) % normalizer.num_active]
        raise ValueError(
            f"policy.num_tokens ({num_tokens}) is less than the {high - low + 1} integers that "
            f"these actions become at a scale of {scale}, most of them in dimension {widest}: "
            "lower "
            "policy.scale (policy.token_scale beside an expert), or raise policy.num_tokens (up to "
            "256)"
        )
    merges = learn_merges((integers - low).tolist(), high - low + 1, room)
    return FastCode(normalizer, chunk, scale, low, high, merges)


def max_normalized_value(num_tokens: int, scale: float, chunk: int) -> float:
    """Bound on normalised values, so that their coefficients fit into the tokens.

    A constant chunk of a value v has the coefficient sqrt(chunk) v.
    """
    return max(
        1.0, min(MAX_NORMALIZED, OUTLIER_TOKEN_FRACTION * num_tokens / (scale * math.sqrt(chunk)))
    )


def learn_merges(rows: list[list[int]], first: int, count: int) -> tuple[Pair, ...]:
    """Merges of byte-pair encoding (Sennrich et al. 2016), at most `count`.

    The most frequent pair of neighbours becomes token `first`, the next one `first + 1`, and so on.
    Of equally frequent pairs the smallest comes first.
    """
    rows_by_content = Counter(tuple(row) for row in rows)
    # Equal rows are merged alike, so each is stored once with its count as a weight.
    words = [list(row) for row in rows_by_content]
    weights = list(rows_by_content.values())
    merges: list[Pair] = []
    pairs: Counter[Pair] = Counter()
    # The rows that contain a pair, so that a merge touches those alone.
    where: dict[Pair, set[int]] = {}
    for i, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += weights[i]
            where.setdefault(pair, set()).add(i)
    while len(merges) < count and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        token = first + len(merges)
        merges.append(best)
        for i in where.pop(best):
            for pair in zip(words[i], words[i][1:]):
                pairs[pair] -= weights[i]
            words[i] = merge_pair(words[i], best, token)
            for pair in zip(words[i], words[i][1:]):
                pairs[pair] += weights[i]
                where.setdefault(pair, set()).add(i)
        del pairs[best]
    return tuple(merges)


def merge_pair(word: list[int], pair: Pair, token: int) -> list[int]:
    """Every occurrence of the pair as one token, from left to right."""
    merged: list[int] = []
    i = 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            merged.append(token)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


def apply_merges(word: list[int], ranks: dict[Pair, int], first: int) -> list[int]:
    """A word as tokens: its earliest learned pair is merged until it contains none."""
    while len(word) > 1:
        best = min(pairwise(word), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        word = merge_pair(word, best, first + ranks[best])
    return word
