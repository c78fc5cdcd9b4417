"""Advantage labels: tokens appended to an instruction that state how good a decision is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from vla.types import Observation


def with_advantage_token(
    observation: Observation, labels: Sequence[Sequence[int]], which: Int[Tensor, "B"]
) -> Observation:
    """Append `labels[which]` to the instruction of every row and mark the tokens as a label.

    `which` holds one index a row; -1 appends nothing. Raises ValueError where a label exceeds the
    instruction length.
    """
    tokens = observation.tokens.clone()
    mask = observation.token_mask.clone()
    label_mask = torch.zeros_like(mask)
    for row, label in enumerate(which.tolist()):
        ids = list(labels[label]) if label >= 0 else []
        first = int(mask[row].sum())
        if first + len(ids) > tokens.shape[1]:
            raise ValueError(
                f"policy.instruction_length ({tokens.shape[1]}) has no room for the {len(ids)} "
                "tokens of an advantage label: raise it"
            )
        tokens[row, first : first + len(ids)] = torch.tensor(ids, dtype=tokens.dtype)
        label_mask[row, first : first + len(ids)] = True
    return replace(observation, tokens=tokens, token_mask=mask | label_mask, label_mask=label_mask)


def without_advantage_token(observation: Observation) -> Observation:
    """Remove the labels from an observation."""
    return replace(observation, token_mask=observation.instruction_mask, label_mask=None)
