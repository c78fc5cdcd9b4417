"""Metrics of a run: metrics.jsonl, TensorBoard and experiment trackers.

A record is appended as one line, so a crash costs at most the last line. A resumed run truncates
the file to the records of its checkpoint (`num_records`), so that no step occurs twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, SupportsFloat, TypedDict, runtime_checkable

from vla.files.reading import KEYS, read_json_lines, read_text
from vla.files.writing import write_atomically
from vla.training.trackers import open_trackers

Value = SupportsFloat | str | None
"""A number, a tensor or NumPy scalar of one element, or a string."""
Plain = float | int | str | bool | None


@runtime_checkable
class HasItem(Protocol):
    """A tensor or NumPy scalar of one element."""

    def item(self) -> Plain: ...


class MetricsRecord(TypedDict):
    """Required keys of a line of metrics.jsonl. Further keys are metrics."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    stage: str
    step: int


class MetricsLog:
    """Appends records {"stage", "step", name: value, ...} to `metrics.jsonl` of a run folder.

    `num_records` counts the records; a checkpoint saves it and a resumed run passes it. TensorBoard
    files are in `tensorboard/STAGE` and hold numbers only; the library loads with the first record.
    `trackers` are names of `vla.training.trackers`; each session opens a new run there.
    """

    def __init__(
        self,
        folder: Path,
        num_records: int = 0,
        tensorboard: bool = True,
        trackers: Sequence[str] = (),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self.num_records = num_records
        self.tensorboard = folder / "tensorboard" if tensorboard else None
        self.writers: dict[str, TensorBoard] = {}
        self.trackers = open_trackers(trackers, folder)
        truncate_metrics(self.path, num_records)

    def write(self, stage: str, step: int, values: Mapping[str, Value]) -> None:
        """Append one record. NaN and infinity become null."""
        plain = {name: json_value(value) for name, value in values.items()}
        line = json.dumps({"stage": stage, "step": step, **plain}, allow_nan=False)
        with self.path.open("a") as opened:
            opened.write(line + "\n")
        self.num_records += 1
        if self.tensorboard is not None:
            self._writer(stage, step).add_scalars(stage, step, plain)
        for tracker in self.trackers:
            tracker.log(stage, step, plain)

    def _writer(self, stage: str, step: int) -> TensorBoard:
        if stage not in self.writers:
            assert self.tensorboard is not None
            self.writers[stage] = TensorBoard(self.tensorboard / stage, step)
        return self.writers[stage]

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        for tracker in self.trackers:
            tracker.close()
        self.writers = {}
        self.trackers = []


class NullLog:
    """The log of every process but the main one: it counts records and writes none."""

    def __init__(self, num_records: int = 0):
        self.num_records = num_records

    def write(self, stage: str, step: int, values: Mapping[str, Value]) -> None:
        self.num_records += 1

    def close(self) -> None:
        return None


class TensorBoard:
    """TensorBoard scalars of one stage. A resume replaces the steps from `first_step` on."""

    def __init__(self, folder: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first_step)

    def add_scalars(self, stage: str, step: int, values: Mapping[str, Plain]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        self.writer.close()


def read_metrics(folder: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """Records of a run, or of one stage. An incomplete last line is left out."""
    path = folder / "metrics.jsonl"
    records = read_json_lines(path, MetricsRecord, "delete that line") if path.exists() else []
    return [record for record in records if stage in (None, record["stage"])]


def truncate_metrics(path: Path, num_records: int) -> None:
    """Keep the first `num_records` complete lines; the file is replaced atomically."""
    if not path.exists():
        return
    lines = read_text(path, "delete it: the curves of the run start again").splitlines(
        keepends=True
    )
    write_atomically(path, "".join(line for line in lines[:num_records] if line.endswith("\n")))


def json_value(value: Value) -> Plain:
    """The value in a type of JSON: scalars of arrays as numbers, NaN and infinity as null."""
    plain = value.item() if isinstance(value, HasItem) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain  # type: ignore[return-value]
