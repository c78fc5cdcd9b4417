"""A tree of tokens cut into stretches without a fork, so that attention looks only along the ways
back to the root.

A square mask makes every place pay for the width of its row. A stretch pays for its own way: its
places attend to those before the stretch, and to each other in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

SEGMENT_LENGTHS = (4, 8, 16, 32, 64)
"""Stretches are cut to one of these lengths, whichever leaves the least padding."""
_OVERHEAD = 4
"""Places of padding that one more stretch is worth."""


@dataclass(frozen=True)
class TreeAttention:
    """Who attends to whom in a row of N places, by S stretches of at most s places with ways of at
    most p.

    `queries` are the places of a stretch, `keys` its way from the first token to its end (padding:
    place 0), `visible` which of them each query sees, `order` where each place stands among the
    flattened queries.
    """

    queries: Int[Tensor, "S s"]
    keys: Int[Tensor, "S p"]
    visible: Bool[Tensor, "S 1 s p"]
    order: Int[Tensor, "N"]

    def map(self, change: Callable[[Tensor], Tensor]) -> TreeAttention:
        return TreeAttention(
            change(self.queries), change(self.keys), change(self.visible), change(self.order)
        )


def build_tree_attention(parents: Sequence[int], depths: Sequence[int]) -> TreeAttention:
    """The stretches of a tree whose parents stand before their children; -1 is no parent, depths
    count from 0."""
    count = len(parents)
    starts = [i for i in range(count) if i == 0 or parents[i] != i - 1]
    runs = list(zip(starts, [*starts[1:], count], strict=True))
    length = min(
        SEGMENT_LENGTHS,
        key=lambda size: sum(-((a - b) // size) for a, b in runs) * (size + _OVERHEAD),
    )
    pieces = [
        (start, min(start + length, end))
        for first, end in runs
        for start in range(first, end, length)
    ]
    ways: list[list[int]] = []
    piece_of = np.empty(count, dtype=np.int64)
    for number, (start, end) in enumerate(pieces):
        piece_of[start:end] = number
        parent = parents[start]
        before = [] if parent < 0 else ways[piece_of[parent]][: depths[parent] + 1]
        ways.append([*before, *range(start, end)])
    return _to_tensors(pieces, ways, np.asarray(depths))


def _to_tensors(
    pieces: Sequence[tuple[int, int]], ways: Sequence[list[int]], depths: np.ndarray
) -> TreeAttention:
    width = max(end - start for start, end in pieces)
    reach = max(map(len, ways))
    queries = np.zeros((len(pieces), width), dtype=np.int64)
    keys = np.zeros((len(pieces), reach), dtype=np.int64)
    seen = np.zeros(
        (len(pieces), width), dtype=np.int64
    )  # the depth up to which a query looks; padding sees place 0
    order = np.empty(len(depths), dtype=np.int64)
    for number, ((start, end), way) in enumerate(zip(pieces, ways, strict=True)):
        queries[number, : end - start] = np.arange(start, end)
        keys[number, : len(way)] = way
        seen[number, : end - start] = depths[start:end]
        order[start:end] = number * width + np.arange(end - start)
    visible = np.arange(reach) <= seen[:, None, :, None]
    return TreeAttention(*(torch.from_numpy(values) for values in (queries, keys, visible, order)))
