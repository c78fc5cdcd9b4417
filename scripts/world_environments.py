"""What worlds share: environments that are made when they are first asked for, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class WorldEnvironments:
    """The environments of a world, by its settings; `_make(num_envs, render_every_step)` makes
    some."""

    cameras: Sequence[str] | None = None
    proprio_names: Sequence[str]

    def __init__(self, settings: Any):
        self.settings = settings
        self._environment: Any = None
        self._recorder: Any = None

    def _make(self, num_envs: int, render_every_step: bool) -> Any:
        raise AssertionError("every world makes its own")

    def environment(self) -> Any:
        if self._environment is None:
            self._environment = self._make(self.settings.num_envs, render_every_step=False)
        return self._environment

    def recorder(self, num_envs: int) -> Any:
        if self._recorder is None or self._recorder.num_envs < num_envs:
            self._recorder = self._make(num_envs, render_every_step=True)
        return self._recorder

    @property
    def proprio_size(self) -> int:
        return len(self.proprio_names)
