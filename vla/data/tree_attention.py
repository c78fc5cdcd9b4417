"""Attention over a token tree by segments without a fork, each with its path from the root.

With a square mask every place pays for the width of its row. A segment pays for its own path only:
its places attend to those before the segment, and to each other in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

SEGMENT_LENGTHS = (4, 8, 16, 32, 64)
"""Lengths of segments; the one with the least padding is chosen."""
_OVERHEAD = 4
"""Cost of one more segment, in places of padding."""


@dataclass(frozen=True)
class TreeAttention:
    """The attention of a row of N places, by S segments of at most s places with paths of at most
    p.

    `queries` are the places of a segment. `keys` are its path from the first token to its end
    (padding: place 0). `visible` masks the keys of each query. `order` is the position of each
    place among the flattened queries.
    """

    queries: Int[Tensor, "S s"]
    keys: Int[Tensor, "S p"]
    visible: Bool[Tensor, "S 1 s p"]
    order: Int[Tensor, "N"]

    def map(self, change: Callable[[Tensor], Tensor]) -> TreeAttention:
        """The same attention with `change` applied to every tensor."""
        return TreeAttention(
            queries=change(self.queries),
            keys=change(self.keys),
            visible=change(self.visible),
            order=change(self.order),
        )


def build_tree_attention(parents: Sequence[int], depths: Sequence[int]) -> TreeAttention:
    """The segments of a tree whose parents precede their children; -1 is no parent, depths count
    from 0."""
    count = len(parents)
    starts = [i for i in range(count) if i == 0 or parents[i] != i - 1]
    runs = list(zip(starts, [*starts[1:], count], strict=True))
    length = min(
        SEGMENT_LENGTHS,
        key=lambda size: sum(-((a - b) // size) for a, b in runs) * (size + _OVERHEAD),
    )
    segments = [
        (start, min(start + length, end))
        for first, end in runs
        for start in range(first, end, length)
    ]
    paths: list[list[int]] = []
    segment_index = np.empty(count, dtype=np.int64)
    for number, (start, end) in enumerate(segments):
        segment_index[start:end] = number
        parent = parents[start]
        before = [] if parent < 0 else paths[segment_index[parent]][: depths[parent] + 1]
        paths.append([*before, *range(start, end)])
    return _to_tensors(segments, paths, np.asarray(depths))


def _to_tensors(
    segments: Sequence[tuple[int, int]], paths: Sequence[list[int]], depths: np.ndarray
) -> TreeAttention:
    width = max(end - start for start, end in segments)
    reach = max(map(len, paths))
    queries = np.zeros((len(segments), width), dtype=np.int64)
    keys = np.zeros((len(segments), reach), dtype=np.int64)
    # The largest depth that a query attends to; padding attends to place 0.
    last_depth = np.zeros((len(segments), width), dtype=np.int64)
    order = np.empty(len(depths), dtype=np.int64)
    for number, ((start, end), path) in enumerate(zip(segments, paths, strict=True)):
        queries[number, : end - start] = np.arange(start, end)
        keys[number, : len(path)] = path
        last_depth[number, : end - start] = depths[start:end]
        order[start:end] = number * width + np.arange(end - start)
    visible = np.arange(reach) <= last_depth[:, None, :, None]
    return TreeAttention(
        queries=torch.from_numpy(queries),
        keys=torch.from_numpy(keys),
        visible=torch.from_numpy(visible),
        order=torch.from_numpy(order),
    )
