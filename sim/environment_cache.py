"""Vector environments that are made at their first use and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Sized(Protocol):
    """Anything with a number of environments."""

    @property
    def num_envs(self) -> int: ...


class EnvironmentCache[E: Sized]:
    """The environments of a simulator. `make(num_envs, render_every_step)` makes new ones."""

    def __init__(self, make: Callable[[int, bool], E]):
        self._make = make
        self._environment: E | None = None
        self._recorder: E | None = None

    def environment(self, num_envs: int) -> E:
        """The environments that a policy acts in."""
        if self._environment is None:
            self._environment = self._make(num_envs, False)
        return self._environment

    def recorder(self, num_envs: int) -> E:
        """At least `num_envs` environments that render after every control step."""
        if self._recorder is None or self._recorder.num_envs < num_envs:
            self._recorder = self._make(num_envs, True)
        return self._recorder
