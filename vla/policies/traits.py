"""The protocol of properties that a policy kind's settings declare, readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

Cache = Literal["perceived", "prefix"]
"""The computation that traces store once the model is frozen.

`perceived` is the head's input. `prefix` is the prefix embeddings, where the head's input would
take too much memory.
"""


@runtime_checkable
class PolicyTraits(Protocol):
    """Class variables or properties of a settings dataclass."""

    @property
    def cache(self) -> Cache | None:
        """The computation that traces store; None if the model cannot be frozen alone."""
        ...

    @property
    def can_guide(self) -> bool:
        """True if predictions with and without an advantage label can be combined
        (`recap.guidance`)."""
        ...

    @property
    def unused(self) -> Mapping[str, tuple[str, ...]]:
        """Settings without effect, by the setting that disables them."""
        ...
