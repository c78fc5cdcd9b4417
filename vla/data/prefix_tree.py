"""Packing of sequences as prefix trees of tokens, so that shared beginnings are computed once.

A row has one place for every distinct prefix of its sequences. Each place attends to the places on
its path to the first token, itself included. Positions count along that path. A causal model then
gives every token the hidden state and the gradient of a row of its own. A shared system message, a
prompt of G completions or a repeated answer costs one pass.
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
"""Least fraction of a sequence that a row must already hold for the sequence to join it.

Every place pays for the row's whole width in attention, so sequences that share little are cheaper
in rows of their own.
"""


@dataclass(frozen=True)
class PackedRows:
    """Rows of packed sequences.

    `attention` is a mask (query, key), or a `TreeAttention` for one row with all sequences. For
    rows of one sequence each it is the mask of real tokens. `slots` are the places, among the P * S
    flattened ones, that predict the sampled tokens, in the order of the mask's True entries.
    `source` holds one given number a token (`pack_completions`).
    """

    tokens: Int[Tensor, "P S"]
    positions: Int[Tensor, "P S"]
    attention: Bool[Tensor, "P 1 S S"] | Bool[Tensor, "P S"] | TreeAttention
    slots: Int[Tensor, "K"]
    source: Int[Tensor, "P S"] | None = None


@dataclass
class PrefixTree:
    """The distinct prefixes of the added sequences; parents precede their children, -1 is no
    parent."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    _child: dict[tuple[int, int], int] = field(default_factory=dict)

    def num_shared(self, sequence: Sequence[int]) -> int:
        """Number of tokens at the start of a sequence that are already in the tree."""
        node = -1
        for depth, token in enumerate(sequence):
            following = self._child.get((node, token))
            if following is None:
                return depth
            node = following
        return len(sequence)

    def add(self, sequence: Sequence[int]) -> list[int]:
        """Add a sequence; the place of each of its tokens."""
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
        """The mask bool [width, width] of each place's path to the first token; padding attends to
        itself."""
        allowed = np.eye(width, dtype=bool)
        # Parents precede children, so a parent's row is complete when a child copies it.
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                allowed[node] |= allowed[parent]
        return allowed


def build_prefix_trees(
    sequences: Sequence[Sequence[int]], row_tokens: int, min_shared: float
) -> tuple[list[PrefixTree], list[tuple[int, list[int]]]]:
    """Trees of at most `row_tokens` tokens, and for each sequence its tree's number and its places
    there.

    The longest sequence comes first. Each joins the tree with room that holds most of it, if that
    is at least `min_shared` of it. A sequence longer than `row_tokens` gets a tree of its own. Rows
    are as wide as the widest tree, so a second packing into trees of equal size is tried, and the
    cheaper one is kept.
    """
    packed = _pack_greedily(sequences, row_tokens, min_shared)
    sizes = [len(tree.tokens) for tree in packed[0]]
    even_size = max(math.ceil(1.05 * sum(sizes) / len(sizes)), max(map(len, sequences)))
    if even_size >= max(sizes):
        return packed
    balanced = _pack_greedily(sequences, even_size, min_shared)
    return min(
        packed,
        balanced,
        key=lambda packing: len(packing[0]) * max(len(tree.tokens) for tree in packing[0]),
    )


def _pack_greedily(
    sequences: Sequence[Sequence[int]], row_tokens: int, min_shared: float
) -> tuple[list[PrefixTree], list[tuple[int, list[int]]]]:
    trees: list[PrefixTree] = []
    assignment: list[tuple[int, list[int]]] = [(-1, [])] * len(sequences)
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
        assignment[i] = (best, trees[best].add(sequence))
    return trees, assignment


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
    """Pack prompts with their completions.

    With `share`, rows are trees of at most `max_row_tokens`, else one sequence each. With
    `one_tree`, all sequences form one tree.

    The last token of a completion predicts nothing and is left out. Prompts and completions must be
    right-padded: completion token t stands in column t. Tokens after equal prefixes have the same
    slot. `sources` holds a number for every token of a row's prompt and completion, concatenated;
    equal prefixes may take it from any of their rows.
    """
    sizes = zip(prompt_mask.sum(1).tolist(), mask.sum(1).tolist(), strict=True)
    paths = []
    places = []
    for prompt, completion, (n, length) in zip(
        prompts.tolist(), completions.tolist(), sizes, strict=True
    ):
        paths.append([*prompt[:n], *completion[: max(length - 1, 0)]])
        places.append(slice(n - 1, n - 1 + length))
    trees, assignment = _pack(paths, max_row_tokens, MIN_SHARED_FRACTION, share, one_tree)
    width = max(len(tree.tokens) for tree in trees)
    slots = [
        tree * width + place
        for (tree, nodes), places_predicting in zip(assignment, places, strict=True)
        for place in nodes[places_predicting]
    ]
    rows = _to_tensors(trees, width, slots, share, one_tree, prompts.device)
    return (
        rows
        if sources is None
        else replace(rows, source=_place_sources(rows.tokens, assignment, sources))
    )


def _place_sources(
    tokens: Int[Tensor, "P S"],
    assignment: Sequence[tuple[int, list[int]]],
    sources: Int[Tensor, "B nL"],
) -> Int[Tensor, "P S"]:
    """The largest of a place's known sources; padding has the source of its row's first token."""
    largest = torch.full_like(tokens, -1)
    is_known = torch.zeros_like(tokens, dtype=torch.bool)
    for (tree, nodes), source in zip(assignment, sources, strict=True):
        largest[tree, nodes] = torch.maximum(largest[tree, nodes], source[: len(nodes)])
        is_known[tree, nodes] = True
    return torch.where(is_known, largest, largest[:, :1])


def _pack(
    paths: Sequence[Sequence[int]], row_tokens: int, min_shared: float, share: bool, one_tree: bool
) -> tuple[list[PrefixTree], list[tuple[int, list[int]]]]:
    if one_tree:
        return _pack_greedily(paths, sum(map(len, paths)), min_shared=0.0)
    return build_prefix_trees(paths, row_tokens, min_shared) if share else _pack_separately(paths)


def _pack_separately(
    paths: Sequence[Sequence[int]],
) -> tuple[list[PrefixTree], list[tuple[int, list[int]]]]:
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
    """Packed sequences: slot `rows.slots[k]` predicts `targets[k]`, a token of sequence
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
    """Pack sequences (ids, loss mask) into rows of at most `row_tokens`, each blind to its
    neighbours.

    Without `share` every sequence has its own row; with `one_tree` all are in one row. Raises
    ValueError for a sequence that is longer than a row.
    """
    longest = max((len(ids) for ids, _ in texts), default=0)
    if longest > row_tokens:
        raise ValueError(
            f"a sequence takes {longest} tokens, row_tokens is {row_tokens}: raise it or shorten "
            "the data"
        )
    sequences = [ids for ids, _ in texts]
    trees, assignment = _pack(sequences, row_tokens, 0.0, share, one_tree)
    width = max(len(tree.tokens) for tree in trees)
    slots = []
    targets = []
    owners = []
    for number, ((ids, learned), (tree, nodes)) in enumerate(zip(texts, assignment, strict=True)):
        for i in range(1, len(ids)):
            if learned[i]:
                slots.append(tree * width + nodes[i - 1])
                targets.append(ids[i])
                owners.append(number)
    return PackedTexts(
        rows=_to_tensors(trees, width, slots, share, one_tree, device),
        targets=torch.tensor(targets, dtype=torch.long, device=device),
        sequence=torch.tensor(owners, dtype=torch.long, device=device),
    )
