"""The numbers of a run, a JSON line for each record, and the same to TensorBoard and to trackers
that are asked for.

A line is appended whole, so a crash costs at most the line being written. A resumed run cuts the
file back to the record its checkpoint had reached (`num_records`), so that no step stands in it
twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, TypedDict

from vla.files.reading import KEYS, read_json_lines, read_text
from vla.files.writing import write_atomically
from vla.training.trackers import open_trackers

Value = SupportsFloat | str | None
"""A number, also a tensor or NumPy scalar of one element, or a word."""
Plain = float | int | str | bool | None


class MetricsRecord(TypedDict):
    """A line of metrics.jsonl; the numbers stand beside."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    stage: str
    step: int


class MetricsLog:
    """Appends records {"stage", "step", name: value, ...} to `metrics.jsonl` in the folder of a
    run.

    `num_records` is what a checkpoint has to keep; a resumed run passes it. TensorBoard files stand
    in `tensorboard/STAGE` and show numbers only; the library loads with the first record.
    `trackers` are names of `vla.training.trackers`; they begin a run of their own in every session.
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
        self.writers: dict[str, Any] = {}
        self.trackers = open_trackers(trackers, folder)
        truncate_metrics(self.path, num_records)

    def write(self, stage: str, step: int, values: Mapping[str, Value]) -> None:
        """Append one record; a value that is not finite is written as null."""
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
        self.writers, self.trackers = {}, []


class NullLog:
    """What a process that is not the main one writes its numbers to: it counts them and keeps
    none."""

    def __init__(self, num_records: int = 0):
        self.num_records = num_records

    def write(self, stage: str, step: int, values: Mapping[str, Value]) -> None:
        self.num_records += 1

    def close(self) -> None:
        return None


def open_log(folder: Path, num_records: int, train: Any, is_main: bool) -> MetricsLog | NullLog:
    """Where a process writes its numbers, by the settings `tensorboard` and `trackers` of
    `train`."""
    return (
        MetricsLog(folder, num_records, train.tensorboard, train.trackers)
        if is_main
        else NullLog(num_records)
    )


class TensorBoard:
    """Scalars of one stage as TensorBoard reads them; steps from `first_step` on are shown anew
    after a resume."""

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
    """The records of a run, or of one of its stages; a last line that a crash cut short is left
    out."""
    path = folder / "metrics.jsonl"
    records = read_json_lines(path, MetricsRecord, "delete that line") if path.exists() else []
    return [record for record in records if stage in (None, record["stage"])]


def truncate_metrics(path: Path, num_records: int) -> None:
    """Keep the first `num_records` whole lines; the file is replaced at once."""
    if not path.exists():
        return
    lines = read_text(path, "delete it: the curves of the run begin anew").splitlines(keepends=True)
    write_atomically(path, "".join(line for line in lines[:num_records] if line.endswith("\n")))


def json_value(value: Value) -> Plain:
    """The value as JSON can say it."""
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
