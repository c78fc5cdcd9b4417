"""Resumable work: the results of a long stage, made and saved piece by piece.

A rollout or an evaluation can take hours. No weight changes meanwhile, so the stage itself writes
no checkpoint. `ResumableWork` saves the finished pieces, the unfinished one (a rollout between two
decisions) and the state of the random generators. A resumed run reads the finished pieces and
continues with the unfinished one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypedDict

from pydantic import TypeAdapter

from vla.files.reading import read_json, validating_file
from vla.files.writing import write_atomically
from vla.rl.rollout_state import decode_rollout, encode_rollout
from vla.training.checkpoint import last_checkpoint, load_checkpoint, save_checkpoint
from vla.training.run import Run, Stateful
from vla.training.seed import restore_rng, rng_state
from vla.training.state_files import TensorCollector, decode_state, encode_state
from vla.training.synchronization import compute_on_main
from vla.types import Rollout, StateDict


class StoredResult(TypedDict):
    """Contents of a result file. `of` identifies the inputs that produced `value`."""

    of: object
    value: object


REMEDY = "delete it; the next session computes it again"


class ResumableWork:
    """Pieces of a stage, computed in a fixed order and saved when a checkpoint is due.

    It is also the `vla.rl.protocols.RolloutSaver` of the piece under way.

    Args:
        key: state of the stage that the pieces belong to, e.g. a number of iterations. Saved pieces
            with another key are ignored.
        parts: objects whose state changes while a piece is computed.
        before_save: called with the generator state from before the first piece. A stage uses it
            to save what the pieces depend on.
    """

    def __init__(
        self,
        run: Run,
        stage: str,
        key: object = 0,
        parts: Mapping[str, Stateful] | None = None,
        before_save: Callable[[StateDict], None] = lambda rng: None,
    ) -> None:
        self.run = run
        self.key = key
        self.parts = dict(parts or {})
        self.before_save = before_save
        rank = run.processes.rank
        self.folder = run.checkpoint_folder(stage) / ("pieces" if rank == 0 else f"pieces-{rank}")
        self.rng = rng_state()
        newest = last_checkpoint(self.folder)
        saved = None if newest is None else load_checkpoint(newest)
        self.number = 0 if newest is None else int(newest.name.rpartition("-")[2])
        self.saved = saved if saved is not None and saved["key"] == key else None
        self.finished: list[Callable[[], object]] = []
        self._current: StateDict | None = None

    def next_piece[T](
        self, make: Callable[[], T], encode: Callable[[T], object], decode: Callable[[Any], T]
    ) -> T:
        """The next piece: decoded from the checkpoint if it was saved, else computed by `make`."""
        self._restore_when_replayed()
        if self.saved is not None:
            encoded = self.saved["finished"][len(self.finished)]
            self.finished.append(lambda: encoded)
            self._restore_when_replayed()
            return decode(encoded)
        piece = make()
        self.finished.append(lambda: encode(piece))
        self._current = None
        self.save_if_due(lambda: None)
        return piece

    def next_rollout(self, make: Callable[[], Rollout]) -> Rollout:
        """The next piece, a rollout."""
        return self.next_piece(make, encode_rollout, decode_rollout)

    def next_value[T](self, kind: type[T], make: Callable[[], T]) -> T:
        """The next piece, a value of type `kind`: dataclasses, lists and mappings of plain
        values."""
        adapter = TypeAdapter(kind)
        return self.next_piece(
            make, lambda value: adapter.dump_python(value, mode="json"), adapter.validate_python
        )

    def load(self) -> StateDict | None:
        """The saved state of the unfinished piece; None where there is none, and after the first
        call."""
        current = self._current
        self._current = None
        return current

    def save_if_due(self, state: Callable[[], StateDict | None]) -> None:
        """Save between two steps of the work if a checkpoint is overdue or a stop was requested.

        `state()` returns the state of the unfinished piece. A single process leaves the run here
        after a stop request. Several processes each save their own pieces and leave together later.
        """
        stop = self.run.processes.num_processes == 1 and self.run.stop.requested
        if not (stop or self.run.checkpoint_overdue):
            return
        self.before_save(self.rng)
        whole = {
            "key": self.key,
            "finished": [piece() for piece in self.finished],
            "current": state(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "rng": rng_state(),
        }
        self.number += 1
        save_checkpoint(self.folder, self.number, whole, keep=1)
        self.run.note_saved()
        if stop:
            self.run.check_stop()

    def _restore_when_replayed(self) -> None:
        """Restore parts, generators and the unfinished piece after the last saved piece."""
        if self.saved is None or len(self.finished) < len(self.saved["finished"]):
            return
        for name, part in self.parts.items():
            part.load_state_dict(self.saved["parts"][name])
        restore_rng(self.saved["rng"])
        self._current = self.saved["current"]
        self.saved = None


def remove_finished_work(run: Run, stage: str) -> None:
    """Remove the saved pieces of a finished stage."""
    stage_folder = run.checkpoint_folder(stage)
    for folder in stage_folder.glob("pieces*"):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # the folder may be absent, or hold checkpoints too
        stage_folder.rmdir()


def load_or_compute[T](
    run: Run,
    name: str,
    kind: type[T],
    make: Callable[[ResumableWork], T],
    depends_on: object = None,
) -> T:
    """Read a result from `NAME.json`, or compute it by `make` and write that file.

    Args:
        kind: type of the result: dataclasses, lists and mappings of plain values.
        make: computes the result; it may do so in pieces.
        depends_on: input that a resumed run may change, e.g. the number of iterations. A file
            written for another value is replaced.

    Raises:
        DamagedFile: for a file that does not hold a result of type `kind`.
    """
    path = run.folder.path / f"{name.replace(' ', '_')}.json"
    adapter = TypeAdapter(kind)

    def read_stored() -> StoredResult | None:
        return read_json(path, StoredResult, REMEDY, finite=False) if path.exists() else None

    stored = compute_on_main(read_stored, run.processes)
    if stored is None or stored["of"] != depends_on:
        value = make(ResumableWork(run, name, depends_on))
        encoded = encode_state(adapter.dump_python(value, mode="json"), "", TensorCollector())
        # encode_state marks NaN and infinity, which JSON lacks
        text = json.dumps({"of": depends_on, "value": encoded}, allow_nan=False)
        if run.processes.is_main:
            write_atomically(path, text + "\n")
        remove_finished_work(run, name)
        stored = json.loads(text)
    with validating_file(path, REMEDY):
        result: T = adapter.validate_python(decode_state(stored["value"], {}))
    return result
