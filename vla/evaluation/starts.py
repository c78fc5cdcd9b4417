"""Which starts a run trained on, chose by and was judged on: ranges of seeds that share none, under
a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from vla.files.reading import KEYS, read_json, validating_file
from vla.files.writing import write_json


@dataclass(frozen=True)
class SeedRange:
    """The simulator seeds `first` to `last`, both counted."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def overlaps(self, other: SeedRange) -> bool:
        return self.first <= other.last and other.first <= self.last

    def take(self, number: int) -> np.ndarray:
        """The first `number` seeds, int64; ValueError when there are fewer."""
        if number > len(self):
            raise ValueError(
                f"{number} starts were asked of {len(self)} seeds ({self.first} to {self.last}): widen them"
            )
        return np.arange(self.first, self.first + number, dtype=np.int64)


class StartManifestFile(TypedDict):
    """What a manifest holds as a file; ranges are their first and last seed."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    sha256: str
    scene: dict[str, Any]
    num_starts: int
    train: list[int]
    validation: list[int]
    evaluation: list[int]


@dataclass(frozen=True)
class StartManifest:
    """The starts of a run: what decides a start besides its seed (`scene`), and the seeds of each
    use.

    `scene` holds plain values (task, robot, distractors, randomisation ...). Two runs with one hash
    were judged on the same starts.
    """

    scene: Mapping[str, Any]
    train: SeedRange
    validation: SeedRange
    evaluation: SeedRange
    num_starts: int

    def __post_init__(self) -> None:
        ranges = {"train": self.train, "validation": self.validation, "evaluation": self.evaluation}
        for (name, seeds), (other, others) in combinations(ranges.items(), 2):
            if seeds.overlaps(others):
                raise ValueError(
                    f"the {other} seeds ({others.first} to {others.last}) overlap the {name} seeds "
                    f"({seeds.first} to {seeds.last}): a start seen before proves nothing, keep the ranges apart"
                )
        self.evaluation.take(self.num_starts)

    @property
    def evaluation_seeds(self) -> np.ndarray:
        """The seeds that reported numbers come from, int64 [num_starts]."""
        return self.evaluation.take(self.num_starts)

    def check_training_seeds(self, seeds: np.ndarray) -> None:
        """Refuse a training start outside the training range, with the seed."""
        outside = seeds[(seeds < self.train.first) | (seeds > self.train.last)]
        if len(outside):
            raise ValueError(
                f"training asked for the start of seed {int(outside[0])}, outside its range "
                f"({self.train.first} to {self.train.last}): it may be one that the run is judged on"
            )

    @property
    def sha256(self) -> str:
        """Hash of what decides the evaluation starts: the scene and their seeds."""
        decides = {"scene": dict(self.scene), "seeds": [self.evaluation.first, self.num_starts]}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return {
            "sha256": self.sha256,
            "scene": dict(self.scene),
            "num_starts": self.num_starts,
            **{name: [getattr(self, name).first, getattr(self, name).last] for name in RANGES},
        }

    def save(self, path: Path) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> StartManifest:
        """Read a manifest back; ValueError when it was edited, for then its hash does not fit."""
        values = read_json(
            path, StartManifestFile, "restore it: it says which starts were trained on"
        )
        with validating_file(path):
            ranges = {name: SeedRange(*values[name]) for name in RANGES}
            manifest = cls(scene=values["scene"], num_starts=values["num_starts"], **ranges)
        if manifest.sha256 != values["sha256"]:
            raise ValueError(
                f"{path} was changed: its hash is not that of its starts; evaluate anew with the settings"
            )
        return manifest


RANGES = ("train", "validation", "evaluation")
