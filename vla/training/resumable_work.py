"""Work made in pieces, in their order: what a session before this one finished is handed out again,
not made again.

Rollouts, judgements and samples take hours where a model is large, and no weight changes meanwhile,
so no checkpoint of the stage would keep what was collected. Its pieces are kept beside: those that
are finished, the one under way (a rollout between two decisions), and the random numbers behind
them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypedDict, TypeVar

from vla.files.reading import read_json, type_adapter, validating_file
from vla.files.writing import write_atomically
from vla.rl.rollout_state import decode_rollout, encode_rollout
from vla.training.checkpoint import last_checkpoint, load_checkpoint, save_checkpoint
from vla.training.run import Run, Stateful
from vla.training.seed import restore_rng, rng_state
from vla.training.state_files import TensorCollector, decode_state, encode_state
from vla.training.synchronization import broadcast_from_main
from vla.types import Rollout

T = TypeVar("T")


class StoredResult(TypedDict):
    of: Any
    value: Any


REMEDY = "delete it, and it is made anew"


class ResumableWork:
    """The pieces of a stage. `key` says of which state of the stage (a number of iterations, say):
    pieces of another one are forgotten. `parts` are what changes while a piece is made.
    `before_save` is called with the random numbers that the pieces began with: the stage saves what
    they depend on, if it has not yet.

    It is the `RolloutSaver` of `vla.rl.protocols` for the piece under way.
    """

    def __init__(
        self,
        run: Run,
        stage: str,
        key: Any = 0,
        parts: Mapping[str, Stateful] | None = None,
        before_save: Callable[[Mapping[str, Any]], None] = lambda rng: None,
    ) -> None:
        self.run, self.key, self.parts, self.before_save = run, key, dict(parts or {}), before_save
        rank = run.processes.rank
        self.folder = run.checkpoint_folder(stage) / ("pieces" if rank == 0 else f"pieces-{rank}")
        self.rng = rng_state()
        newest = last_checkpoint(self.folder)
        saved = None if newest is None else load_checkpoint(newest)
        self.number = 0 if newest is None else int(newest.name.rpartition("-")[2])
        self.saved = saved if saved is not None and saved["key"] == key else None
        self.finished: list[Callable[[], Any]] = []
        self._current: Any = None

    def next_piece(
        self, make: Callable[[], T], encode: Callable[[T], Any], decode: Callable[[Any], T]
    ) -> T:
        """The next piece: as a checkpoint holds it, or made."""
        self._catch_up()
        if self.saved is not None:
            kept = self.saved["finished"][len(self.finished)]
            self.finished.append(lambda: kept)
            self._catch_up()
            return decode(kept)
        made = make()
        self.finished.append(lambda: encode(made))
        self._current = None
        self.save_if_due(lambda: None)
        return made

    def next_rollout(self, make: Callable[[], Rollout]) -> Rollout:
        return self.next_piece(make, encode_rollout, decode_rollout)

    def next_value(self, kind: Any, make: Callable[[], Any]) -> Any:
        """A piece of this type: dataclasses, lists and mappings of plain values."""
        plain = type_adapter(kind)
        return self.next_piece(
            make, lambda made: plain.dump_python(made, mode="json"), plain.validate_python
        )

    def load(self) -> Any:
        """What is kept of the piece under way, once."""
        current, self._current = self._current, None
        return current

    def save_if_due(self, state: Callable[[], Any]) -> None:
        """Between two steps of the work: save where it is time to or someone asked to stop, and
        leave then. `state` is that of the piece under way. Of many processes each saves its own,
        and all leave together later.
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

    def _catch_up(self) -> None:
        """Go on from where the checkpoint stands once all that it holds is handed out."""
        if self.saved is None or len(self.finished) < len(self.saved["finished"]):
            return
        for name, part in self.parts.items():
            part.load_state_dict(self.saved["parts"][name])
        restore_rng(self.saved["rng"])
        self._current, self.saved = self.saved["current"], None


def remove_finished_work(run: Run, stage: str) -> None:
    """Remove what is kept of the pieces of a stage that is over."""
    of_stage = run.checkpoint_folder(stage)
    for folder in of_stage.glob("pieces*"):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # it holds checkpoints too, or there is none
        of_stage.rmdir()


def load_or_compute(
    run: Run, name: str, kind: Any, make: Callable[[ResumableWork], Any], of: Any = None
) -> Any:
    """What `make` gives, kept in `NAME.json`; read back where it was kept before, of the same `of`
    (what it depends on and a resumed run may change, the number of iterations say). `kind` is its
    type: dataclasses, lists and mappings of plain values, of which all are given back as they are
    read. It may be made in pieces.

    Raises DamagedFile where it cannot be read.
    """
    path, plain = run.folder.path / f"{name.replace(' ', '_')}.json", type_adapter(kind)
    known = run.processes.is_main and path.exists()
    found = broadcast_from_main(
        read_json(path, StoredResult, REMEDY, finite=False) if known else None, run.processes
    )
    if found is None or found["of"] != of:
        made = plain.dump_python(make(ResumableWork(run, name, of)), mode="json")
        text = json.dumps(
            {"of": of, "value": encode_state(made, "", TensorCollector())}, allow_nan=False
        )  # JSON has no NaN
        if run.processes.is_main:
            write_atomically(path, text + "\n")
        remove_finished_work(run, name)
        found = json.loads(text)
    with validating_file(path, REMEDY):
        return plain.validate_python(decode_state(found["value"], {}))
