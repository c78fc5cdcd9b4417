"""The run object of every mode: folder, stages, seeds, results, checkpoints, stop and resume.

A run is a sequence of stages. Each stage has its own random numbers. A resumed run continues from
one of three records of a stage: an entry in results.json (`finish_stage`), a checkpoint (`save`) or
a result file (`vla.training.resumable_work.load_or_compute`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from vla.config.training import Train
from vla.files.writing import DiskFull, is_disk_full
from vla.interrupt import Interrupted, StopRequest
from vla.training.checkpoint import (
    check_checkpoint,
    last_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from vla.training.distributed import SINGLE_PROCESS, Processes
from vla.training.metrics import MetricsLog, NullLog, truncate_metrics
from vla.training.progress import Progress
from vla.training.run_folder import RunFolder, to_plain
from vla.training.seed import derive_seed, restore_rng, rng_state, seed_everything
from vla.training.state_files import read_plain_state
from vla.training.synchronization import (
    SharedStop,
    StopFlag,
    broadcast_from_main,
    compute_on_main,
    share_stop,
)
from vla.training.timing import Timer, peak_memory_bytes
from vla.types import StateDict


@runtime_checkable
class Stateful(Protocol):
    """A part of a run that a checkpoint saves and restores."""

    def state_dict(self) -> StateDict: ...

    def load_state_dict(self, state: StateDict, /) -> object: ...


@dataclass
class Run:
    """Shared state of all stages of a run.

    Only the main process writes and prints; all processes read.

    Args:
        results: contents of results.json, written after each stage.
        earlier_results: results at the start of this session, for times and peak memory.
        lines: number of lines of each file that `append_lines` extends.
    """

    folder: RunFolder
    log: MetricsLog | NullLog
    stop: StopFlag
    train: Train
    processes: Processes = SINGLE_PROCESS
    progress: Progress = field(default_factory=Progress)
    timer: Timer = field(default_factory=Timer)
    results: StateDict = field(default_factory=dict)
    earlier_results: StateDict = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.saved_at = self.timer.clock()

    @contextmanager
    def stage(self, name: str, seed_name: str | None = None) -> Iterator[None]:
        """A timed stage with its own random numbers, seeded by `seed_name` (`name` where None).

        Its draws do not depend on the stages that ran before it in this session.
        """
        seed_everything(self.seed(seed_name or name))
        with self.timer(name):
            yield

    def seed(self, *names: str | int) -> int:
        """The seed of a named purpose (`derive_seed`)."""
        return derive_seed(self.train.seed, *names)

    def is_finished(self, stage: str) -> bool:
        """True once a stage is finished, in this session or an earlier one."""
        return stage in self.results.get("stages", {})

    def finish_stage(self, stage: str, values: Mapping[str, object]) -> None:
        """Record the results of a stage and write results.json."""
        self.results.setdefault("stages", {})[stage] = dict(values)
        self.write_results()

    def stage_seconds(self, stage: str) -> float:
        """Seconds of a stage, over all sessions."""
        return self.timer.seconds().get(stage, 0.0) + self.earlier_results.get("seconds", {}).get(
            stage, 0.0
        )

    def append_lines(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Append JSON lines to a file of the run folder.

        A resumed run truncates the file to the number of lines in its checkpoint.
        """
        self.lines[name] = self.lines.get(name, 0) + len(rows)
        if self.processes.is_main:
            with (self.folder.path / name).open("a") as file:
                file.writelines(json.dumps(to_plain(row), allow_nan=False) + "\n" for row in rows)

    def write_results(self) -> None:
        """Write results.json, with the time and peak memory so far."""
        before = self.earlier_results.get("seconds", {})
        spent = self.timer.seconds()
        self.results["seconds"] = {
            name: spent.get(name, 0.0) + before.get(name, 0.0) for name in {**before, **spent}
        }
        self.results["cpu_seconds"] = (
            self.earlier_results.get("cpu_seconds", 0.0) + time.process_time()
        )
        self.results["peak_memory_bytes"] = max(
            peak_memory_bytes(), self.earlier_results.get("peak_memory_bytes", 0)
        )
        if not self.processes.is_main:
            return
        self.folder.write_results(self.results)

    def checkpoint_folder(self, stage: str) -> Path:
        """Folder of a stage's checkpoints."""
        return self.folder.checkpoints / stage.replace(" ", "_")

    def checkpoint_due(self, step: int) -> bool:
        """True where a checkpoint is due after `step` steps of a stage.

        One is due every `train.checkpoint_every` steps, and when it is overdue.
        """
        return step % self.train.checkpoint_every == 0 or self.checkpoint_overdue

    @property
    def checkpoint_overdue(self) -> bool:
        """True where the last checkpoint is at least `train.checkpoint_seconds` old."""
        return self.timer.clock() - self.saved_at >= self.train.checkpoint_seconds

    def save(
        self,
        stage: str,
        step: int,
        state: StateDict,
        score: float | None = None,
        keep: int | None = None,
        rng: StateDict | None = None,
    ) -> None:
        """Write a checkpoint of a stage: its state, the generators and the line counts.

        Args:
            score: validation score; the best checkpoint is kept besides the last ones.
            keep: number of last checkpoints to keep; None: `train.keep_checkpoints`.
            rng: state of the generators; None: the present one.
        """
        self.saved_at = self.timer.clock()
        if not self.processes.is_main:
            return
        whole = {
            **state,
            "rng": rng or rng_state(),
            "num_records": self.log.num_records,
            "lines": self.lines,
        }
        save_checkpoint(
            self.checkpoint_folder(stage),
            step,
            whole,
            keep=keep or self.train.keep_checkpoints,
            score=score,
        )
        self.note_saved()

    def note_saved(self) -> None:
        """Restart the checkpoint clock and write the time so far to results.json."""
        self.saved_at = self.timer.clock()
        self.write_results()

    def load(self, stage: str) -> StateDict | None:
        """The last checkpoint of a stage, with the generators restored; None where there is
        none."""
        path = broadcast_from_main(last_checkpoint(self.checkpoint_folder(stage)), self.processes)
        if path is None:
            return None
        state = load_checkpoint(path)
        restore_rng(state["rng"])
        return state

    def check_stop(self) -> None:
        """Raise `Interrupted` after a stop request."""
        if self.stop.requested:
            self.write_results()
            raise Interrupted(self.stop.number)

    def for_main_process(self) -> Run:
        """A copy of the run without communication, for work that only the main process does."""
        stop = self.stop.own if isinstance(self.stop, SharedStop) else self.stop
        return replace(self, stop=stop, processes=SINGLE_PROCESS)


def start_run(
    folder: RunFolder,
    stop: StopRequest,
    processes: Processes,
    train: Train,
    progress: Progress | None = None,
) -> Run:
    """Open the run in this process, with its results and logs so far."""
    num_records, lines = compute_on_main(lambda: lines_at_last_checkpoint(folder), processes)
    log: MetricsLog | NullLog = NullLog(num_records)
    if processes.is_main:
        log = MetricsLog(folder.path, num_records, train.tensorboard, train.trackers)
        for name, count in lines.items():
            truncate_metrics(folder.path / name, count)
    results = compute_on_main(folder.read_results, processes)
    return Run(
        folder,
        log,
        share_stop(stop, processes),
        train,
        processes,
        progress or (Progress() if processes.is_main else Progress.silent()),
        results=results,
        earlier_results=dict(results),
        lines=lines,
    )


@contextmanager
def save_on_exit(run: Run, report: Callable[[], object]) -> Iterator[None]:
    """Write the results when the block ends, fails or is interrupted; close the log.

    `report()` writes the report and returns its path. It is called after the end and after an
    interrupt, not after an error. A full disk while writing does not replace the block's own error.

    Raises:
        DiskFull: in place of an `OSError` of a full disk.
    """
    try:
        yield
        run.check_stop()
        run.write_results()
        if run.processes.is_main:
            run.progress.print_line(f"report: {report()}")
    except Interrupted:
        run.write_results()
        if run.processes.is_main:
            report()
        run.progress.print_line(f"stopped; continue with resume={run.folder.path}")
        raise
    except BaseException as error:
        with suppress(OSError):
            run.write_results()
        if isinstance(error, OSError) and is_disk_full(error) and not isinstance(error, DiskFull):
            raise DiskFull(
                f"the disk is full ({error}): make room, then resume={run.folder.path}"
            ) from error
        raise
    finally:
        run.log.close()


APPENDED = ("samples.jsonl",)
"""Files of `append_lines` that are emptied where no checkpoint counts their lines."""


def lines_at_last_checkpoint(folder: RunFolder) -> tuple[int, dict[str, int]]:
    """Numbers of metrics records and of lines of other files at the newest checkpoint of all
    stages."""
    num_records = 0
    lines = dict.fromkeys(APPENDED, 0)
    for stage in sorted(folder.checkpoints.glob("*/")):
        path = last_checkpoint(stage)
        if path is None:
            continue
        check_checkpoint(path)  # a damaged count would truncate files
        state = read_plain_state(path)
        num_records = max(num_records, state["num_records"])
        for name, count in state["lines"].items():
            lines[name] = max(lines.get(name, 0), count)
    return num_records, lines
