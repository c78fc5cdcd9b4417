"""Conversion of raw observations to model inputs: text to tokens, arrays to tensors (images stay
uint8)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from vla.data.advantage_tokens import with_advantage_token
from vla.types import Observation

INSTRUCTION_CACHE_SIZE = 4096
"""Number of instructions whose tokens an `Observer` caches."""


@runtime_checkable
class RawObservation(Protocol):
    """The observation of every environment and dataset (`sim.task.SimObservation`,
    `DemonstrationBatch`)."""

    @property
    def images(self) -> Mapping[str, np.ndarray]: ...
    @property
    def proprio(self) -> np.ndarray: ...
    @property
    def instruction(self) -> Sequence[str]: ...


@dataclass
class Observer:
    """A converter of environment rows to an `Observation`, with a cache of tokenized instructions.

    All instructions are right-padded to `length` tokens, so that rows of different calls can be
    joined. The tokens of `label` follow every instruction, marked as a label. A `sentence` contains
    "{instruction}" and names `slots`, as "<front>": images and state take those positions in the
    text (`vla.models.vlm`), in addition to `length`.

    Special tokens of the tokenizer, as "<start_of_image>", are words.

    Raises ValueError for an instruction longer than `length` and for an unknown slot.
    """

    tokenizer: Any
    length: int
    label: str = ""
    sentence: str | None = None
    slots: Mapping[str, range] = field(default_factory=dict)
    encode: Callable[[str], list[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # A client of a served policy must not fill its memory with instructions.
        self.encode = lru_cache(INSTRUCTION_CACHE_SIZE)(self._encode)

    def __getstate__(self) -> dict[str, Any]:
        """All but the cache, which does not pickle."""
        return {name: value for name, value in vars(self).items() if name != "encode"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()

    def _encode(self, text: str) -> list[int]:
        words = self.words(text) if self.sentence is None else self._sentence_tokens(text)
        ids = [self.tokenizer.bos_token_id, *words]
        taken = sum(token >= 0 for token in ids)
        if taken > self.length:
            raise ValueError(
                f"the instruction {text!r} takes {taken} tokens, policy.instruction_length is "
                f"{self.length}: raise it"
            )
        return ids

    def _sentence_tokens(self, text: str) -> list[int]:
        """The tokens of the sentence around an instruction; token -1 - k is the slot of prefix
        token k."""
        ids: list[int] = []
        for part in re.split(r"(<\w+>)", self.sentence or ""):
            if part[1:-1] in self.slots:
                ids += [-1 - place for place in self.slots[part[1:-1]]]
            elif re.fullmatch(r"<\w+>", part) and part not in self.tokenizer.get_vocab():
                slots = ", ".join(f"<{name}>" for name in self.slots)
                raise ValueError(f"data.sentence ({self.sentence}) names {part}; there are {slots}")
            else:
                ids += self.words(part.replace("{instruction}", text))
        return ids

    @property
    def _room(self) -> int:
        """Tokens of a row: those of the text and those of the slots in the sentence."""
        named = re.findall(r"<(\w+)>", self.sentence or "")
        return self.length + sum(len(self.slots.get(name, ())) for name in named)

    def words(self, text: str) -> list[int]:
        """The tokens of a text, without special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def __call__(self, raw: RawObservation) -> Observation:
        rows = [self.encode(text) for text in raw.instruction]
        tokens = torch.full((len(rows), self._room), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros(len(rows), self._room, dtype=torch.bool)
        for i, ids in enumerate(rows):
            tokens[i, : len(ids)] = torch.tensor(ids)
            mask[i, : len(ids)] = True
        observation = Observation(
            images={
                name: torch.from_numpy(np.ascontiguousarray(image))
                for name, image in raw.images.items()
            },
            proprio=torch.from_numpy(np.asarray(raw.proprio, dtype=np.float32)),
            tokens=tokens,
            token_mask=mask,
        )
        label = self.words(self.label)
        return (
            with_advantage_token(observation, [label], torch.zeros(len(rows), dtype=torch.long))
            if label
            else observation
        )
