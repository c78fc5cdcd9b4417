"""The protocol of policies that the robot pipeline evaluates and trains by RL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from torch.nn import Parameter

from vla.types import ActionScores, Decision, Observation, Trace


@runtime_checkable
class RobotPolicy(Protocol):
    """A policy with the contract of `vla.rl.protocols.Policy` that parts of it can be frozen in."""

    @property
    def chunk(self) -> int:
        """Control steps of a decision, H."""
        ...

    @property
    def temperature(self) -> float:
        """Temperature of sampled draws."""
        ...

    @property
    def can_train_head(self) -> bool:
        """True if the last layers can train on stored outputs of those before."""
        ...

    def act(self, observation: Observation, *, greedy: bool = False) -> Decision: ...

    def score(self, observation: Observation, trace: Trace) -> ActionScores: ...

    def parameters(self) -> Iterator[Parameter]: ...

    def freeze_model(self) -> None:
        """Freeze all but the last layers."""
        ...

    def freeze_prefix(self) -> None:
        """Freeze the encoders of images and state."""
        ...

    def freeze_for_adapter(self) -> None:
        """Freeze all but an adapter."""
        ...
