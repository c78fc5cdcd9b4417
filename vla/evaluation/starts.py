"""Start manifest: the seed ranges of `configs/evaluation`, checked to be disjoint, and hashed."""

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
    """The simulator seeds `first` to `last`, both included."""

    first: int
    last: int

    def __len__(self) -> int:
        """Number of seeds."""
        return self.last - self.first + 1

    def overlaps(self, other: SeedRange) -> bool:
        """True where the ranges share a seed."""
        return self.first <= other.last and other.first <= self.last

    def take(self, number: int) -> np.ndarray:
        """The first `number` seeds, int64.

        Raises:
            ValueError: the range has fewer.
        """
        if number > len(self):
            raise ValueError(
                f"{number} starts need as many seeds, and {self.first} to {self.last} are "
                f"{len(self)}: widen the range"
            )
        return np.arange(self.first, self.first + number, dtype=np.int64)


class StartManifestFile(TypedDict):
    """A manifest as a file; ranges are lists of first and last seed."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    sha256: str
    scene: dict[str, Any]
    num_starts: int
    train: list[int]
    validation: list[int]
    evaluation: list[int]


@dataclass(frozen=True)
class StartManifest:
    """The starts of a run: the scene settings that determine a start, and the seeds of each use.

    `scene` holds plain values (task, robot, distractors, randomisation ...). Two runs with the same
    hash were evaluated on the same starts.

    Raises:
        ValueError: ranges overlap, or `evaluation` has fewer than `num_starts` seeds.
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
                    f"({seeds.first} to {seeds.last}): evaluation needs held-out starts, keep the "
                    "ranges apart"
                )
        self.evaluation.take(self.num_starts)

    @property
    def evaluation_seeds(self) -> np.ndarray:
        """Seeds of the reported evaluation, int64 [num_starts]."""
        return self.evaluation.take(self.num_starts)

    @property
    def sha256(self) -> str:
        """Hash of the evaluation starts: scene settings and seeds."""
        content = {"scene": dict(self.scene), "seeds": [self.evaluation.first, self.num_starts]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The manifest as in `StartManifestFile`."""
        return {
            "sha256": self.sha256,
            "scene": dict(self.scene),
            "num_starts": self.num_starts,
            **{name: [getattr(self, name).first, getattr(self, name).last] for name in RANGES},
        }

    def save(self, path: Path) -> None:
        """Write starts.json."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> StartManifest:
        """Read starts.json.

        Raises:
            ValueError: the file is damaged, or its hash does not match its starts.
        """
        values = read_json(
            path, StartManifestFile, "restore it: it holds the starts of the training"
        )
        with validating_file(path):
            ranges = {name: SeedRange(*values[name]) for name in RANGES}
            manifest = cls(scene=values["scene"], num_starts=values["num_starts"], **ranges)
        if manifest.sha256 != values["sha256"]:
            raise ValueError(
                f"{path} was changed: its hash does not match its starts; evaluate again with the "
                "settings"
            )
        return manifest


RANGES = ("train", "validation", "evaluation")
