"""The sections of a text run."""

from __future__ import annotations

from typing import Literal

from vla.config.algorithm import Algorithm
from vla.config.section import Section
from vla.config.training import Rl, Train


class Rlvr(Section):
    name: Literal["rlvr"]


class TextConfig(Section):
    """Everything a run of a language model was told."""

    mode: Literal["text"]
    run_dir: str | None
    resume: str | None
    text: Rlvr
    algorithm: Algorithm
    rl: Rl
    train: Train

    @property
    def name(self) -> str:
        return f"{self.text.name}-{self.algorithm.name}"

    @property
    def needs_hub(self) -> bool:
        return False
