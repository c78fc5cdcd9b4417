"""The numbers of a run to trackio or Weights & Biases, which share their calls: init, log,
finish."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla.files.reading import read_yaml
from vla.files.secrets import mask_nested

PROJECT = "vla"
PACKAGES = {"trackio": "trackio", "wandb": "wandb"}
"""Trackers by name, and the package that brings each."""


class Tracker:
    """A run at a tracker, called as its folder. Each stage counts its own steps: they are logged as
    `STAGE/step`, and charts take them as their axis where the tracker can be told so.
    """

    def __init__(self, name: str, folder: Path):
        try:
            self.module: Any = importlib.import_module(PACKAGES[name])
        except ImportError:
            remedy = f"pip install {PACKAGES[name]}, or take it out of train.trackers"
            raise ValueError(
                f"train.trackers names {name}, which is not installed: {remedy}"
            ) from None
        self.run = self.module.init(
            project=PROJECT, name=folder.name, config=read_run_settings(folder)
        )
        self.stages: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Numbers only; words and what was not finite are left out."""
        if stage not in self.stages and hasattr(self.module, "define_metric"):
            self.module.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.stages.add(stage)
        numbers = {f"{stage}/{name}": v for name, v in values.items() if isinstance(v, int | float)}
        self.module.log({**numbers, f"{stage}/step": step})

    def close(self) -> None:
        self.module.finish()


def open_trackers(names: Sequence[str], folder: Path) -> list[Tracker]:
    """The trackers that the settings name; ValueError where one is not installed."""
    return [Tracker(name, folder) for name in names]


def read_run_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run, where they are written already."""
    path = folder / "config.yaml"
    return mask_nested(read_yaml(path)) if path.exists() else {}
