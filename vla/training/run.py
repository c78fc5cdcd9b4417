"""A run under way: its folder, its clock, what it prints, its stages, and how it saves, stops and
goes on.

A run is a sequence of stages. Each draws random numbers of its own, and leaves what a resumed run
picks up: a note in results.json (`finish`), a checkpoint (`save`), or a value in a file
(`vla.training.resumable_work.load_or_compute`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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
from vla.training.synchronization import SharedStop, StopFlag, broadcast_from_main, share_stop
from vla.training.timing import Timer, peak_memory_bytes


@runtime_checkable
class Stateful(Protocol):
    """What a checkpoint keeps besides weights and optimizer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Run:
    """What every stage of a run shares. `results` is what results.json holds, written whenever
    something is finished; `earlier_results` are the seconds that sessions before this one took. `lines`
    counts what stands in files that are appended to. Of many processes the main one alone writes
    and prints; all of them read.
    """

    folder: RunFolder
    log: MetricsLog | NullLog
    stop: StopFlag
    train: Train
    processes: Processes = SINGLE_PROCESS
    progress: Progress = field(default_factory=Progress)
    timer: Timer = field(default_factory=Timer)
    results: dict[str, Any] = field(default_factory=dict)
    earlier_results: Mapping[str, Any] = field(default_factory=dict)
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
        """A seed for a named purpose."""
        return derive_seed(self.train.seed, *names)

    def is_finished(self, stage: str) -> bool:
        """Whether a stage was finished, now or before the run was resumed."""
        return stage in self.results.get("stages", {})

    def finish_stage(self, stage: str, values: Mapping[str, Any]) -> None:
        """Note what a stage came to, and write it down."""
        self.results.setdefault("stages", {})[stage] = dict(values)
        self.write_results()

    def stage_seconds(self, stage: str) -> float:
        """What a stage took, over all sessions."""
        return self.timer.seconds().get(stage, 0.0) + self.earlier_results.get("seconds", {}).get(
            stage, 0.0
        )

    def append_lines(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add lines of JSON to a file of the folder. A resumed run cuts it back to what its
        checkpoint had seen."""
        self.lines[name] = self.lines.get(name, 0) + len(rows)
        if self.processes.is_main:
            with (self.folder.path / name).open("a") as file:
                file.writelines(json.dumps(to_plain(row), allow_nan=False) + "\n" for row in rows)

    def write_results(self) -> None:
        """Write results.json, with the time and memory used so far."""
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
        """Where the checkpoints of a stage stand."""
        return self.folder.checkpoints / stage.replace(" ", "_")

    def checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after so many steps of a stage: it is every
        `train.checkpoint_every`, and where the last one is `train.checkpoint_seconds` old.
        """
        return step % self.train.checkpoint_every == 0 or self.checkpoint_overdue

    @property
    def checkpoint_overdue(self) -> bool:
        """Whether the last checkpoint is older than it may be."""
        return self.timer.clock() - self.saved_at >= self.train.checkpoint_seconds

    def save(
        self,
        stage: str,
        step: int,
        state: Mapping[str, Any],
        score: float | None = None,
        keep: int | None = None,
        rng: Mapping[str, Any] | None = None,
    ) -> None:
        """A checkpoint of a stage: its own state, and the random numbers (`rng`, or the present
        ones) and counts that go with it. The last `keep` are kept, as the settings say where it is
        None.
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
        """Something was saved: the seconds up to here count if this session is killed."""
        self.saved_at = self.timer.clock()
        self.write_results()

    def load(self, stage: str) -> dict[str, Any] | None:
        """The last checkpoint of a stage, its random numbers put back; None when there is none."""
        path = broadcast_from_main(last_checkpoint(self.checkpoint_folder(stage)), self.processes)
        if path is None:
            return None
        state = load_checkpoint(path)
        restore_rng(state["rng"])
        return state

    def check_stop(self) -> None:
        """Leave the run when someone asked for it."""
        if self.stop.requested:
            self.write_results()
            raise Interrupted(self.stop.number)

    def for_main_process(self) -> Run:
        """The run as the main process sees it while the others wait: nothing in it asks them
        anything."""
        stop = self.stop.own if isinstance(self.stop, SharedStop) else self.stop
        return replace(self, stop=stop, processes=SINGLE_PROCESS)


def start_run(
    folder: RunFolder,
    stop: StopRequest,
    processes: Processes,
    train: Train,
    progress: Progress | None = None,
) -> Run:
    """The run in this process, with what it has come to so far."""
    agreed = share_stop(stop, processes)
    num_records, lines = broadcast_from_main(
        lines_at_last_checkpoint(folder) if processes.is_main else None, processes
    )
    log: MetricsLog | NullLog = NullLog(num_records)
    if processes.is_main:
        log = MetricsLog(folder.path, num_records, train.tensorboard, train.trackers)
        for name, count in lines.items():
            truncate_metrics(folder.path / name, count)
    said = progress or (Progress() if processes.is_main else Progress.silent())
    results = broadcast_from_main(folder.read_results() if processes.is_main else None, processes)
    return Run(
        folder,
        log,
        agreed,
        train,
        processes,
        said,
        results=results,
        earlier_results=dict(results),
        lines=lines,
    )


@contextmanager
def save_on_exit(run: Run, report: Callable[[], object]) -> Iterator[None]:
    """Whatever ends the block, what the run came to is written; the report too where it was no
    error. An error keeps its own words where a full disk lets nothing more be written.
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


REMEDY = "delete it, and it is made anew"
APPENDED = ("samples.jsonl",)
"""Files that are cut back to nothing where no checkpoint has seen them."""


def lines_at_last_checkpoint(folder: RunFolder) -> tuple[int, dict[str, int]]:
    """How many records of the metrics, and lines of other files, the newest checkpoint of all
    stages had seen."""
    num_records, lines = 0, dict.fromkeys(APPENDED, 0)
    for stage in sorted(folder.checkpoints.glob("*/")):
        path = last_checkpoint(stage)
        if path is None:
            continue
        check_checkpoint(path)  # files are cut back to what it says
        state = read_plain_state(path)
        num_records = max(num_records, state["num_records"])
        for name, count in state["lines"].items():
            lines[name] = max(lines.get(name, 0), count)
    return num_records, lines
