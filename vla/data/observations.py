"""From what an environment shows to what a model takes: text becomes tokens, arrays become tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from vla.types import Observation


@runtime_checkable
class Seen(Protocol):
    """What every environment and dataset shows (`sim.task.SimObservation`, `DemonstrationBatch`)."""

    @property
    def images(self) -> Mapping[str, np.ndarray]: ...
    @property
    def proprio(self) -> np.ndarray: ...
    @property
    def instruction(self) -> Sequence[str]: ...


@dataclass
class Observer:
    """Turns rows of an environment into an `Observation`; instructions are tokenised once and remembered.

    All instructions are padded to `length` tokens on the right, so that rows of different calls can be joined.
    """

    tokenizer: Any
    length: int
    _known: dict[str, list[int]] = field(default_factory=dict)

    def encode(self, text: str) -> list[int]:
        if text not in self._known:
            ids = [self.tokenizer.bos_token_id, *self.tokenizer.encode(text, add_special_tokens=False)]
            if len(ids) > self.length:
                raise ValueError(
                    f"the instruction {text!r} takes {len(ids)} tokens, policy.instruction_length is "
                    f"{self.length}: raise it"
                )
            self._known[text] = ids
        return self._known[text]

    def __call__(self, seen: Seen) -> Observation:
        rows = [self.encode(text) for text in seen.instruction]
        tokens = torch.full((len(rows), self.length), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros(len(rows), self.length, dtype=torch.bool)
        for i, ids in enumerate(rows):
            tokens[i, : len(ids)] = torch.tensor(ids)
            mask[i, : len(ids)] = True
        return Observation(
            images={name: torch.from_numpy(np.ascontiguousarray(image)) for name, image in seen.images.items()},
            proprio=torch.from_numpy(np.asarray(seen.proprio, dtype=np.float32)),
            tokens=tokens,
            token_mask=mask,
        )
