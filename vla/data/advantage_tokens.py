"""Words behind an instruction that say how good a decision is: put there, and taken away again."""

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
    """The observation with tokens `labels[which]` behind every instruction, marked as a label; -1:
    nothing.

    Raises ValueError where there is no room.
    """
    tokens = observation.tokens.clone()
    mask = observation.token_mask.clone()
    marked = torch.zeros_like(mask)
    for row, label in enumerate(which.tolist()):
        ids = list(labels[label]) if label >= 0 else []
        first = int(mask[row].sum())
        if first + len(ids) > tokens.shape[1]:
            raise ValueError(
                f"policy.instruction_length ({tokens.shape[1]}) has no room for {len(ids)} "
                "tokens of a label: raise it"
            )
        tokens[row, first : first + len(ids)] = torch.tensor(ids, dtype=tokens.dtype)
        marked[row, first : first + len(ids)] = True
    return replace(observation, tokens=tokens, token_mask=mask | marked, label_mask=marked)


def without_advantage_token(observation: Observation) -> Observation:
    """The observation without its labels."""
    return replace(observation, token_mask=observation.instruction_mask, label_mask=None)
