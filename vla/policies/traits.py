"""What the settings of a policy kind declare about it; needs no tensors, so settings are checked by
it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

Cache = Literal["perceived", "prefix"]
"""What a trace carries once the model is frozen: what the head perceived, or the prefix embeddings
where that would take too much memory."""


@runtime_checkable
class PolicyTraits(Protocol):
    """Class variables or properties of a settings dataclass."""

    @property
    def cache(self) -> Cache | None:
        """None: the head runs the language model for every draw, so the model cannot be frozen
        apart from it."""
        ...

    @property
    def can_guide(self) -> bool:
        """Whether predictions with and without an advantage label can be combined
        (`recap.guidance`)."""
        ...

    @property
    def unused(self) -> Mapping[str, tuple[str, ...]]:
        """Settings without effect, by the setting whose value makes them so."""
        ...
