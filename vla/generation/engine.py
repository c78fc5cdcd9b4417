"""The protocol of a generation engine, which draws completions in place of the model in this
process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Int
from torch import Tensor

from vla.generation.generate import Generation
from vla.generation.sampling import Sampling


@runtime_checkable
class Engine(Protocol):
    """A function that continues right-padded prompts until a stop token or `max_new_tokens`, with
    the model's present weights."""

    def __call__(
        self,
        tokens: Int[Tensor, "B n"],
        mask: Bool[Tensor, "B n"],
        sampling: Sampling,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        pad_id: int,
        greedy: bool,
    ) -> Generation: ...
