"""Experiment trackers: trackio and Weights & Biases, which share the calls init, log and finish."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vla.files.reading import read_yaml
from vla.files.secrets import mask_nested

PROJECT = "vla"
PACKAGES = {"trackio": "trackio", "wandb": "wandb"}
"""{name of a tracker: its package}."""


@runtime_checkable
class TrackerModule(Protocol):
    """The functions of a tracker's package used here."""

    def init(self, *, project: str, name: str, config: dict[str, Any]) -> object: ...

    def log(self, values: dict[str, float]) -> object: ...

    def finish(self) -> object: ...


class Tracker:
    """A run at a tracker, named after the run folder.

    Each stage counts its own steps, logged as `STAGE/step`. Charts use them as their axis where the
    tracker has `define_metric`.

    Raises:
        ValueError: where the tracker's package is not installed.
    """

    def __init__(self, name: str, folder: Path):
        try:
            self.module: TrackerModule = importlib.import_module(PACKAGES[name])  # type: ignore[assignment]
        except ImportError:
            remedy = f"pip install {PACKAGES[name]}, or take it out of train.trackers"
            raise ValueError(
                f"train.trackers names {name}, which is not installed: {remedy}"
            ) from None
        self.run = self.module.init(
            project=PROJECT, name=folder.name, config=read_run_settings(folder)
        )
        self.stages: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, object]) -> None:
        """Log the numbers among `values`; strings and None are left out."""
        if stage not in self.stages and hasattr(self.module, "define_metric"):
            self.module.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.stages.add(stage)
        numbers = {f"{stage}/{name}": v for name, v in values.items() if isinstance(v, int | float)}
        self.module.log({**numbers, f"{stage}/step": step})

    def close(self) -> None:
        self.module.finish()


def open_trackers(names: Sequence[str], folder: Path) -> list[Tracker]:
    """Open the trackers with these names.

    Raises:
        ValueError: where a tracker's package is not installed.
    """
    return [Tracker(name, folder) for name in names]


def read_run_settings(folder: Path) -> dict[str, Any]:
    """Settings of the run with secrets masked; empty before config.yaml is written."""
    path = folder / "config.yaml"
    return mask_nested(read_yaml(path)) if path.exists() else {}
