"""A run under way: its folder, its clock, what it prints, and how it saves, stops and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from vla.files.write import DiskFull, is_disk_full
from vla.interrupt import Interrupted, Stop
from vla.train.agreement import SharedStop, Stopping, from_main, shared
from vla.train.checkpoint import last_checkpoint, load_checkpoint, save_checkpoint
from vla.train.distributed import ALONE, Processes
from vla.train.metrics import MetricsLog, NoLog
from vla.train.progress import Progress
from vla.train.run_folder import RunFolder
from vla.train.seed import restore_rng, rng_state
from vla.train.timing import Timer, peak_memory_bytes


@dataclass
class Run:
    """What every stage of a run shares. `results` is what results.json holds, written whenever something is
    finished; `earlier_seconds` is the time that sessions before this one took. Of many processes the main one alone
    writes and prints; all of them read.
    """

    folder: RunFolder
    log: MetricsLog | NoLog
    stop: Stopping
    keep_checkpoints: int
    processes: Processes = ALONE
    progress: Progress = field(default_factory=Progress)
    timer: Timer = field(default_factory=Timer)
    results: dict[str, Any] = field(default_factory=dict)
    earlier_seconds: dict[str, float] = field(default_factory=dict)

    def done(self, stage: str) -> bool:
        """Whether a stage was finished, now or before the run was resumed."""
        return stage in self.results.get("stages", {})

    def finish(self, stage: str, values: Mapping[str, Any]) -> None:
        """Note what a stage came to, and write it down."""
        self.results.setdefault("stages", {})[stage] = dict(values)
        self.write()

    def seconds_of(self, stage: str) -> float:
        """What a stage took, over all sessions."""
        return self.timer.seconds().get(stage, 0.0) + self.earlier_seconds.get(stage, 0.0)

    def write(self) -> None:
        """Write results.json, with the time and memory used so far."""
        before = self.earlier_seconds
        spent = self.timer.seconds()
        self.results["seconds"] = {name: spent.get(name, 0.0) + before.get(name, 0.0) for name in {**before, **spent}}
        self.results["peak_memory_bytes"] = max(peak_memory_bytes(), self.results.get("peak_memory_bytes", 0))
        if not self.processes.is_main:
            return
        self.folder.write_results(self.results)

    def save(self, stage: str, step: int, state: Mapping[str, Any], score: float | None = None) -> None:
        """A checkpoint of a stage: its own state, and the random numbers and metrics that go with it."""
        if not self.processes.is_main:
            return
        whole = {**state, "rng": rng_state(), "num_records": self.log.num_records}
        save_checkpoint(self.folder.checkpoints / stage, step, whole, keep=self.keep_checkpoints, score=score)

    def load(self, stage: str) -> dict[str, Any] | None:
        """The last checkpoint of a stage, its random numbers put back; None when there is none."""
        path = from_main(last_checkpoint(self.folder.checkpoints / stage), self.processes)
        if path is None:
            return None
        state = load_checkpoint(path)
        restore_rng(state["rng"])
        return state

    def check_stop(self) -> None:
        """Leave the run when someone asked for it."""
        if self.stop.requested:
            self.write()
            raise Interrupted(self.stop.number)

    def alone(self) -> Run:
        """The run as the main process sees it while the others wait: nothing in it asks them anything."""
        stop = self.stop.own if isinstance(self.stop, SharedStop) else self.stop
        return replace(self, stop=stop, processes=ALONE)


def start_run(
    folder: RunFolder,
    stop: Stop,
    processes: Processes,
    keep_checkpoints: int,
    tensorboard: bool,
    trackers: Sequence[str],
) -> Run:
    """The run in this process, with what it has come to so far."""
    agreed = shared(stop, processes)
    if processes.is_main:
        run = Run(folder, resume_log(folder, tensorboard, trackers), agreed, keep_checkpoints, processes)
    else:
        run = Run(folder, NoLog(), agreed, keep_checkpoints, processes, Progress.silent())
    run.results = from_main(folder.read_results() if processes.is_main else None, processes)
    run.earlier_seconds = run.results.get("seconds", {})
    return run


@contextmanager
def written(run: Run, report: Callable[[], object]) -> Iterator[None]:
    """Whatever ends the block, what the run came to is written; the report too where it was no error. An error keeps
    its own words where a full disk lets nothing more be written.
    """
    try:
        yield
        run.check_stop()
        run.write()
        if run.processes.is_main:
            run.progress.say(f"report: {report()}")
    except Interrupted:
        run.write()
        if run.processes.is_main:
            report()
        run.progress.say(f"stopped; continue with resume={run.folder.path}")
        raise
    except BaseException as error:
        with suppress(OSError):
            run.write()
        if isinstance(error, OSError) and is_disk_full(error) and not isinstance(error, DiskFull):
            raise DiskFull(f"the disk is full ({error}): make room, then resume={run.folder.path}") from error
        raise
    finally:
        run.log.close()


def resume_log(folder: RunFolder, tensorboard: bool, trackers: Sequence[str] = ()) -> MetricsLog:
    """The metrics of a run, cut back to what its newest checkpoint had seen."""
    counts = []
    for stage in ("grounding", "sft", "recap", "rl"):
        path = last_checkpoint(folder.checkpoints / stage)
        if path is not None:
            counts.append(load_checkpoint(path)["num_records"])
    return MetricsLog(folder.path, num_records=max(counts, default=0), tensorboard=tensorboard, trackers=trackers)
