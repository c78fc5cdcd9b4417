"""What an algorithm declares about itself; needs no tensors, so settings are checked by it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from vla.rl.choices import KLPlacement


@runtime_checkable
class AlgorithmTraits(Protocol):
    """Class variables or properties of an algorithm's dataclass."""

    @property
    def needs_groups(self) -> bool:
        """Whether advantages compare the trajectories of one start."""
        ...

    @property
    def needs_values(self) -> bool:
        """Whether the policy must have a critic."""
        ...

    @property
    def needs_reference(self) -> bool:
        """Whether a KL penalty to a reference policy is on."""
        ...

    @property
    def kl_placement(self) -> KLPlacement | None:
        """Where that penalty enters; None for an algorithm that has no such setting."""
        ...

    @property
    def uses_ratio(self) -> bool:
        """Whether a likelihood ratio corrects for the optimizer steps already taken from a rollout;
        without one, a rollout serves a single step."""
        ...
