"""Several sequences in one row, as a tree of tokens: what begins alike is read once.

Every distinct beginning (a prefix of token ids) of the sequences in a row has one place, and each
place attends to the places on its way back to the first token, itself included. Positions count
along that way. A causal model then gives every token the hidden state it has in a row of its own,
gradients included, while a system message that all prompts share, a prompt that G completions
share, or an answer that is given twice costs one pass instead of many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vla.data.tree_attention import TreeAttention, build_tree_attention

MIN_SHARED_FRACTION = 0.25
"""Share of a sequence that must stand in a row already for it to join: every place of a row pays
for the row's whole width in attention, so sequences that have little in common are better off
apart.
"""


@dataclass(frozen=True)
class PackedRows:
    """`attention` says who may attend to whom: (query, key), or by one_tree for one row that holds
    everything; or, for rows of one sequence each, which places are real.

    `slots` are the places where the draws are predicted, in the P * S flattened places, draws in
    the order of the mask's True entries. `source` is what was known of each token
    (`pack_completions`).
    """

    tokens: Int[Tensor, "P S"]
    positions: Int[Tensor, "P S"]
    attention: Bool[Tensor, "P 1 S S"] | Bool[Tensor, "P S"] | TreeAttention
    slots: Int[Tensor, "K"]
    source: Int[Tensor, "P S"] | None = None


@dataclass
class PrefixTree:
    """The distinct beginnings of the sequences put in; parents stand before their children, -1 is
    no parent."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    _child: dict[tuple[int, int], int] = field(default_factory=dict)

    def num_shared(self, sequence: Sequence[int]) -> int:
        """How many tokens at the beginning of a sequence stand in the tree already."""
        node = -1
        for depth, token in enumerate(sequence):
            following = self._child.get((node, token))
            if following is None:
                return depth
            node = following
        return len(sequence)

    def add(self, sequence: Sequence[int]) -> list[int]:
        """Put a sequence in; the place of each of its tokens."""
        node = -1
        places = []
        for depth, token in enumerate(sequence):
            following = self._child.setdefault((node, token), len(self.tokens))
            if following == len(self.tokens):
                self.tokens.append(token)
                self.depths.append(depth)
                self.parents.append(node)
            node = following
            places.append(node)
        return places

    def attention(self, width: int) -> np.ndarray:
        """Who attends to whom, bool [width, width]: the way back to the first token; padding sees
        itself."""
        allowed = np.eye(width, dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                allowed[node] |= allowed[parent]
        return allowed


def build_prefix_trees(
    sequences: Sequence[Sequence[int]], row_tokens: int, min_shared: float
) -> tuple[list[PrefixTree], list[tuple[int, list[int]]]]:
    """(trees of at most `row_tokens` tokens, for each sequence the number of its tree and its
    places there).

    Longest first, each into the tree with room that holds most of it, at least `min_shared` of it;
    a sequence longer than `row_tokens` gets a tree of its own. Rows are as wide as the widest, so
    trees of one size are tried as well.
    """
    first = _plant(sequences, row_tokens, min_shared)
    sizes = [len(tree.tokens) for tree in first[0]]
    even = max(math.ceil(1.05 * sum(sizes) / len(sizes)), max(map(len, sequences)))
    if even >= max(sizes):
        return first
    second = _plant(sequences, even, min_shared)
    return min(
        first,
        second,
        key=lambda planted: len(planted[0]) * max(len(tree.tokens) for tree in planted[0]),
    )


def _plant(
    sequences: Sequence[Sequence[int]], row_tokens: int, min_shared: float
) -> tuple[list[PrefixTree], list[tuple[int, list[int]]]]:
    trees: list[PrefixTree] = []
    found: list[tuple[int, list[int]]] = [(-1, [])] * len(sequences)
    for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        sequence = sequences[i]
        best = -1
        most = -1
        for number, tree in enumerate(trees):
            shared = tree.num_shared(sequence)
            fits = len(tree.tokens) + len(sequence) - shared <= row_tokens
            if fits and shared > most and shared >= min_shared * len(sequence):
                best = number
                most = shared
        if best < 0:
            best = len(trees)
            trees.append(PrefixTree())
        found[i] = (best, trees[best].add(sequence))
    return trees, found


def pack_completions(
    prompts: Int[Tensor, "B n"],
    prompt_mask: Bool[Tensor, "B n"],
    completions: Int[Tensor, "B L"],
    mask: Bool[Tensor, "B L"],
    share: bool,
    max_row_tokens: int,
    sources: Int[Tensor, "B nL"] | None = None,
    one_tree: bool = False,
) -> PackedRows:
    """Prompts and what follows them. `share`: as trees of at most `max_row_tokens`; if not, a row
    each. `one_tree`: as one tree, however large.

    The last token of a completion predicts nothing and is left out. Prompts and completions must be
    right-padded: draw t stands in column t. Draws behind equal beginnings have the same slot.
    `sources` says something of every token of a row's prompt and completion, put one behind the
    other; equal beginnings may take it from any of their rows.
    """
    sizes = zip(prompt_mask.sum(1).tolist(), mask.sum(1).tolist(), strict=True)
    paths = []
    places = []
    for prompt, completion, (n, length) in zip(
        prompts.tolist(), completions.tolist(), sizes, strict=True
    ):
        paths.append([*prompt[:n], *completion[: max(length - 1, 0)]])
        places.append(slice(n - 1, n - 1 + length))
    trees, found = _planted(paths, max_row_tokens, MIN_SHARED_FRACTION, share, one_tree)
    width = max(len(tree.tokens) for tree in trees)
    slots = [
        tree * width + place
        for (tree, nodes), kept in zip(found, places, strict=True)
        for place in nodes[kept]
    ]
    rows = _to_tensors(trees, width, slots, share, one_tree, prompts.device)
    return (
        rows if sources is None else replace(rows, source=_source_of(rows.tokens, found, sources))
    )


def _source_of(
    tokens: Int[Tensor, "P S"], found: Sequence[tuple[int, list[int]]], sources: Int[Tensor, "B nL"]
) -> Int[Tensor, "P S"]:
    """Of several known sources of a place the largest; padding has that of its row's first
    token."""
    kept = torch.full_like(tokens, -1)
    known = torch.zeros_like(tokens, dtype=torch.bool)
    for (tree, nodes), source in zip(found, sources, strict=True):
        kept[tree, nodes] = torch.maximum(kept[tree, nodes], source[: len(nodes)])
        known[tree, nodes] = True
    return torch.where(known, kept, kept[:, :1])


def _planted(
    paths: Sequence[Sequence[int]], row_tokens: int, min_shared: float, share: bool, one_tree: bool
) -> tuple[list[PrefixTree], list[tuple[int, list[int]]]]:
    if one_tree:
        return _plant(paths, sum(map(len, paths)), min_shared=0.0)
    return build_prefix_trees(paths, row_tokens, min_shared) if share else _apart(paths)


def _apart(paths: Sequence[Sequence[int]]) -> tuple[list[PrefixTree], list[tuple[int, list[int]]]]:
    trees = [PrefixTree() for _ in paths]
    return trees, [
        (i, tree.add(path)) for i, (tree, path) in enumerate(zip(trees, paths, strict=True))
    ]


def _to_tensors(
    trees: Sequence[PrefixTree],
    width: int,
    slots: Sequence[int],
    share: bool,
    one_tree: bool,
    device: torch.device,
) -> PackedRows:
    def pad(rows: list[list[int]]) -> Tensor:
        return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)

    attention: Tensor | TreeAttention
    if one_tree:
        attention = build_tree_attention(trees[0].parents, trees[0].depths).map(
            lambda tensor: tensor.to(device)
        )
    elif share:
        attention = torch.from_numpy(np.stack([tree.attention(width) for tree in trees]))[
            :, None
        ].to(device)
    else:
        sizes = torch.tensor([len(tree.tokens) for tree in trees], device=device)
        attention = torch.arange(width, device=device) < sizes[:, None]
    tokens = pad([tree.tokens for tree in trees])
    positions = pad([tree.depths for tree in trees])
    return PackedRows(
        tokens, positions, attention, torch.tensor(slots, dtype=torch.long, device=device)
    )


@dataclass(frozen=True)
class PackedTexts:
    """`targets[k]` is to be predicted at slot `rows.slots[k]`, and belongs to sequence
    `sequence[k]`."""

    rows: PackedRows
    targets: Int[Tensor, "K"]
    sequence: Int[Tensor, "K"]


def pack_texts(
    texts: Sequence[tuple[Sequence[int], Sequence[bool]]],
    row_tokens: int,
    share: bool,
    device: torch.device,
    one_tree: bool = False,
) -> PackedTexts:
    """Sequences (ids, which of them are learned), each blind to its neighbours, in rows of at most
    `row_tokens`; not `share`: in a row each; `one_tree`: in one row.

    Raises ValueError for a sequence that fits in no row.
    """
    longest = max((len(ids) for ids, _ in texts), default=0)
    if longest > row_tokens:
        raise ValueError(
            f"a sequence takes {longest} tokens, row_tokens is {row_tokens}: raise it or shorten "
            "the data"
        )
    sequences = [ids for ids, _ in texts]
    trees, found = _planted(sequences, row_tokens, 0.0, share, one_tree)
    width = max(len(tree.tokens) for tree in trees)
    slots = []
    targets = []
    owners = []
    for number, ((ids, learned), (tree, nodes)) in enumerate(zip(texts, found, strict=True)):
        for i in range(1, len(ids)):
            if learned[i]:
                slots.append(tree * width + nodes[i - 1])
                targets.append(ids[i])
                owners.append(number)
    as_tensor = [
        torch.tensor(values, dtype=torch.long, device=device) for values in (targets, owners)
    ]
    return PackedTexts(_to_tensors(trees, width, slots, share, one_tree, device), *as_tensor)
