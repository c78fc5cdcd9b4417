"""Declared properties of an algorithm. The module imports no tensors, so settings checks can use
it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from vla.rl.choices import KLPlacement


@runtime_checkable
class AlgorithmTraits(Protocol):
    """Properties of an algorithm, as class variables or properties of its dataclass."""

    @property
    def needs_groups(self) -> bool:
        """True where advantages compare the trajectories of one start."""
        ...

    @property
    def needs_values(self) -> bool:
        """True where the policy must have a critic."""
        ...

    @property
    def needs_reference(self) -> bool:
        """True where a KL penalty to a reference policy is on."""
        ...

    @property
    def kl_placement(self) -> KLPlacement | None:
        """Place of that penalty; None for an algorithm without it."""
        ...

    @property
    def uses_ratio(self) -> bool:
        """True where a likelihood ratio corrects for earlier optimizer steps on a rollout. Without
        one, a rollout serves a single step."""
        ...
