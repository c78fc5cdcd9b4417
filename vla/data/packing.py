"""Several sequences in one row, each blind to the others.

Segments number the sequences of a row: 0 is a shared prefix that every later segment sees (the prompt of a group), 1,
2, ... are branches that see the prefix and themselves, -1 is padding. Positions restart after the prefix in each
branch. A causal model then gives every token the hidden state it has in a row of its own, while a prompt shared by G
completions is read once instead of G times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

PREFIX, PADDING = 0, -1


@dataclass(frozen=True)
class PackedRows:
    """`slots` says where each wanted draw is predicted: an index into the P * S flattened slots, in the order of the
    mask's True entries.
    """

    tokens: Int[Tensor, "P S"]
    positions: Int[Tensor, "P S"]
    segments: Int[Tensor, "P S"]
    slots: Int[Tensor, "K"]


def attention_mask(segments: Int[Tensor, "P S"]) -> Bool[Tensor, "P 1 S S"]:
    """Who may attend to whom (query, key): earlier or equal, in the same segment or in the shared prefix."""
    query, key = segments[:, :, None], segments[:, None, :]
    allowed = (query == key) | ((key == PREFIX) & (query != PADDING))
    return allowed.tril()[:, None]


def pack_completions(
    prompts: Int[Tensor, "B n"],
    prompt_mask: Bool[Tensor, "B n"],
    completions: Int[Tensor, "B L"],
    mask: Bool[Tensor, "B L"],
    prompt_of_row: Sequence[int] | None,
    max_row_tokens: int,
) -> PackedRows:
    """Rows [prompt, c1, ..., cG] of equal prompts, split (the prompt repeated) where they would pass `max_row_tokens`.

    `prompt_of_row` numbers equal prompts; None: every completion gets a row of its own. The last token of a completion
    predicts nothing and is left out. Completions must be right-padded: draw t stands in column t.
    """
    lengths = mask.sum(1).tolist()
    prompt_lists = [row[: int(m)] for row, m in zip(prompts.tolist(), prompt_mask.sum(1).tolist(), strict=True)]
    completion_lists = [row[: int(m)] for row, m in zip(completions.tolist(), lengths, strict=True)]
    open_row: dict[int, int] = {}
    rows: list[tuple[list[int], list[int], list[int]]] = []
    places: list[tuple[int, int]] = []
    for b, completion in enumerate(completion_lists):
        prompt, fed = prompt_lists[b], completion[:-1]
        key = b if prompt_of_row is None else prompt_of_row[b]
        row = open_row.get(key)
        if row is None or len(rows[row][0]) + len(fed) > max_row_tokens:
            row = open_row[key] = len(rows)
            rows.append((list(prompt), list(range(len(prompt))), [PREFIX] * len(prompt)))
        tokens, positions, segments = rows[row]
        start, branch = len(tokens), segments[-1] + 1
        tokens.extend(fed)
        positions.extend(range(len(prompt), len(prompt) + len(fed)))
        segments.extend([branch] * len(fed))
        if completion:
            places.append((row, len(prompt) - 1))
            places.extend((row, start + t) for t in range(len(fed)))
    return _to_tensors(rows, places, prompts.device)


def _to_tensors(
    rows: list[tuple[list[int], list[int], list[int]]], places: list[tuple[int, int]], device: torch.device
) -> PackedRows:
    width = max(len(tokens) for tokens, _, _ in rows)

    def pad(column: int, value: int) -> Tensor:
        return torch.tensor([r[column] + [value] * (width - len(r[column])) for r in rows], device=device)

    slots = torch.tensor([row * width + slot for row, slot in places], dtype=torch.long, device=device)
    return PackedRows(pad(0, 0), pad(1, 0), pad(2, PADDING), slots)


def first_fit(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Which sequences share a row of at most `row_tokens`: longest first, each into the first row with room.

    Raises ValueError naming the longest sequence when it fits in no row.
    """
    if lengths and max(lengths) > row_tokens:
        raise ValueError(
            f"a sequence takes {max(lengths)} tokens, row_tokens is {row_tokens}: raise it or shorten the data"
        )
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(room) if left >= lengths[i]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(row_tokens)
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


@dataclass(frozen=True)
class PackedTexts:
    """`targets[k]` is to be predicted at slot `slots[k]` of the flattened rows, and belongs to sequence
    `sequence[k]`.
    """

    rows: PackedRows
    targets: Int[Tensor, "K"]
    sequence: Int[Tensor, "K"]


def pack_texts(
    texts: Sequence[tuple[Sequence[int], Sequence[bool]]], row_tokens: int, device: torch.device
) -> PackedTexts:
    """Sequences (ids, which of them are learned) in rows of at most `row_tokens`, each blind to its neighbours."""
    rows: list[tuple[list[int], list[int], list[int]]] = []
    places, targets, owners = [], [], []
    for row, members in enumerate(first_fit([len(ids) for ids, _ in texts], row_tokens)):
        tokens, positions, segments = [], [], []
        for number, member in enumerate(members, start=1):
            ids, learned = texts[member]
            for i in range(1, len(ids)):
                if learned[i]:
                    places.append((row, len(tokens) + i - 1))
                    targets.append(ids[i])
                    owners.append(member)
            tokens.extend(ids)
            positions.extend(range(len(ids)))
            segments.extend([number] * len(ids))
        rows.append((tokens, positions, segments))
    packed = _to_tensors(rows, places, device)
    as_tensor = [torch.tensor(values, dtype=torch.long, device=device) for values in (targets, owners)]
    return PackedTexts(packed, *as_tensor)
