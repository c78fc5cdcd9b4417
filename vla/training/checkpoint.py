"""Atomic checkpoints on disk: the last ones and the best, renamed into place, verified on reading.

    checkpoints/
      step-000020/  model.safetensors optimizer.safetensors ... state.json config.yaml manifest.json
      best.json     name and score of the best one

A crash or a full disk while writing leaves the older checkpoints intact. Nothing is pickled.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from vla.files.manifest import find_fault, write_manifest
from vla.files.reading import KEYS, read_optional_json
from vla.files.writing import (
    REPLACED,
    DiskFull,
    atomic_folder,
    is_disk_full,
    restore_folders,
    write_json,
)
from vla.training.state_files import read_state, tensor_bytes, write_state
from vla.types import StateDict

SPARE_BYTES = 2**20
"""Disk space for files without tensors."""


class CorruptCheckpoint(ValueError):
    """A checkpoint with a missing or changed file."""


class BestCheckpoint(TypedDict):
    """Contents of best.json; empty before the first score."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    checkpoint: NotRequired[str]
    score: NotRequired[float]


def save_checkpoint(
    folder: Path,
    step: int,
    state: StateDict,
    *,
    keep: int,
    score: float | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write `folder/step-NNNNNN`, then remove all but the last `keep` checkpoints and the best.

    Args:
        state: nested tensors and plain values by name; a name with tensors becomes a safetensors
            file.
        score: the highest score marks the best checkpoint.
        texts: further text files by name, e.g. the settings.

    Raises:
        DiskFull: where the disk is full; older checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    restore_folders(folder)
    final = folder / f"step-{step:06d}"
    try:
        check_disk_space(folder, tensor_bytes(list(state.values())) + SPARE_BYTES)
        with atomic_folder(final) as unfinished:
            write_state(unfinished, state)
            for name, text in (texts or {}).items():
                (unfinished / name).write_text(text)
            write_manifest(unfinished, list(unfinished.iterdir()), step=step)
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(disk_full_message(final, error)) from None
    if score is not None:
        mark_best(folder, final.name, score)
    prune_checkpoints(folder, keep)
    return final


def load_checkpoint(path: Path) -> StateDict:
    """Read the state of a checkpoint after verifying its files.

    Raises:
        CorruptCheckpoint: for a missing or changed file.
    """
    check_checkpoint(path)
    return read_state(path)


def check_checkpoint(path: Path) -> None:
    """Verify the files of a checkpoint by checksum.

    Raises:
        CorruptCheckpoint: for a missing or changed file, with a remedy.
    """
    fault = find_fault(path)
    if fault is None:
        return
    others = [
        other
        for other in reversed(list_checkpoints(path.parent))
        if other != path and find_fault(other) is None
    ]
    remedy = (
        f"the last good one is {others[0]}: delete {path.name} and resume again"
        if others
        else "no other is left"
    )
    raise CorruptCheckpoint(f"checkpoint {path} is corrupt: {fault}; {remedy}")


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, oldest first. A replaced checkpoint counts until its successor exists."""
    complete = {path.name: path for path in folder.glob("step-*")}
    aside = {path.name.removeprefix(REPLACED): path for path in folder.glob(f"{REPLACED}step-*")}
    return [
        path
        for name, path in sorted((aside | complete).items())
        if re.fullmatch(r"step-\d{6,}", name)
    ]


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step."""
    checkpoints = list_checkpoints(folder)
    return checkpoints[-1] if checkpoints else None


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest score."""
    name = read_best(folder).get("checkpoint")
    return folder / name if name and (folder / name).exists() else None


def read_best(folder: Path) -> BestCheckpoint:
    return read_optional_json(
        folder / "best.json", {}, BestCheckpoint, "delete it: the next score marks the best again"
    )


def mark_best(folder: Path, name: str, score: float) -> None:
    """Mark a checkpoint as the best unless an existing one scored higher; the later of two equals
    wins."""
    best = read_best(folder)
    beaten = (
        "score" not in best
        or score >= best["score"]
        or best["checkpoint"] == name
        or not best_checkpoint(folder)
    )
    if beaten:
        write_json(folder / "best.json", {"checkpoint": name, "score": score})


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the last `keep` checkpoints and the best."""
    best = best_checkpoint(folder)
    for path in list_checkpoints(folder)[: -max(keep, 1)]:
        if path != best:
            shutil.rmtree(path)


def check_disk_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
        )


def disk_full_message(final: Path, error: Exception) -> str:
    older = last_checkpoint(final.parent)
    state = f"{older} is intact" if older else "there is no older one"
    reason = getattr(error, "strerror", None) or error
    return (
        f"the disk is full, checkpoint {final} was not written ({reason}); "
        f"{state}: make room, then resume"
    )
