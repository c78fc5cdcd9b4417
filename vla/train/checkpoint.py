"""Checkpoints that are whole or absent: written beside, flushed, renamed, and verified by checksum when they are read.

    checkpoints/
      step-000020/  model.safetensors optimizer.safetensors ... state.json config.yaml manifest.json
      best.json     which one scored highest

A crash or a full disk while writing leaves the older checkpoints as they were. Nothing is pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla.train.storage import num_bytes, read_state, write_state

FORMAT = 1
SPARE_BYTES = 2**20
"""Room for what is written beside the tensors."""


class CorruptCheckpoint(ValueError):
    """A checkpoint whose files are not those that were written."""


class DiskFull(OSError):
    """There is no room for a checkpoint; those written before are intact."""


def save_checkpoint(
    folder: Path,
    step: int,
    state: Mapping[str, Any],
    *,
    keep: int,
    score: float | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write `folder/step-NNNNNN` and remove old ones, all but the last `keep` and the best.

    `state` maps names to tensors and plain values nested at will; every name with tensors becomes a safetensors file.
    The highest `score` marks the best checkpoint. `texts` are files to stand beside, e.g. the settings. Raises
    `DiskFull`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear_unfinished(folder)
    final = folder / f"step-{step:06d}"
    unfinished = folder / f".unfinished-{final.name}"
    try:
        check_room(folder, num_bytes(list(state.values())) + SPARE_BYTES)
        unfinished.mkdir()
        write_state(unfinished, state)
        for name, text in (texts or {}).items():
            (unfinished / name).write_text(text)
        write_manifest(unfinished, step)
        flush(unfinished)
        if final.exists():
            shutil.rmtree(final)
        unfinished.rename(final)
        flush_folder(folder)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not is_disk_full(error):
            raise
        raise DiskFull(full_message(final, error)) from None
    if score is not None:
        mark_best(folder, final.name, score)
    prune(folder, keep)
    return final


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that was saved, once every file is found to be what was written; else `CorruptCheckpoint`."""
    fault = find_fault(path)
    if fault is None:
        return read_state(path)
    others = [other for other in reversed(list_checkpoints(path.parent)) if other != path and find_fault(other) is None]
    remedy = f"the last good one is {others[0]}: delete {path.name} and resume again" if others else "no other is left"
    raise CorruptCheckpoint(f"checkpoint {path} is corrupt: {fault}; {remedy}")


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, oldest step first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name))


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step."""
    found = list_checkpoints(folder)
    return found[-1] if found else None


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest score."""
    name = read_best(folder).get("checkpoint")
    return folder / name if name and (folder / name).exists() else None


def find_fault(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest.json cannot be read ({error.__class__.__name__})"
    if manifest["format"] != FORMAT:
        return f"manifest.json says format {manifest['format']}, this version reads {FORMAT}"
    for name, written in files.items():
        file = path / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size != written["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, {written['bytes']} were written"
        if digest(file) != written["sha256"]:
            return f"{name} does not have the checksum that was written"
    return None


def write_manifest(folder: Path, step: int) -> None:
    files = {file.name: {"bytes": file.stat().st_size, "sha256": digest(file)} for file in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1))


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file so that a reader, or a crash, sees the old text or the new one."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    with unfinished.open("w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    unfinished.replace(path)


def read_best(folder: Path) -> dict[str, Any]:
    path = folder / "best.json"
    return json.loads(path.read_text()) if path.exists() else {}


def mark_best(folder: Path, name: str, score: float) -> None:
    """Mark a checkpoint as the best unless another that is still there scored higher; the later of two equals wins."""
    best = read_best(folder)
    beaten = "score" not in best or score >= best["score"] or best["checkpoint"] == name or not best_checkpoint(folder)
    if beaten:
        write_atomically(folder / "best.json", json.dumps({"checkpoint": name, "score": score}))


def prune(folder: Path, keep: int) -> None:
    """Remove all but the last `keep` checkpoints and the best."""
    best = best_checkpoint(folder)
    for path in list_checkpoints(folder)[: -max(keep, 1)]:
        if path != best:
            shutil.rmtree(path)


def clear_unfinished(folder: Path) -> None:
    """Remove what a crash while writing left."""
    for path in folder.glob(".unfinished-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free")


def is_disk_full(error: Exception) -> bool:
    """Whether the error says that the disk, or the user's share of it, is full (safetensors says so only in words)."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left" in str(error)


def full_message(final: Path, error: Exception) -> str:
    older = last_checkpoint(final.parent)
    kept = f"{older} is intact" if older else "there is no older one"
    reason = getattr(error, "strerror", None) or error
    return f"the disk is full, checkpoint {final} was not written ({reason}); {kept}: make room, then resume"


def flush(folder: Path) -> None:
    """Make sure every file of a folder is on the disk."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    flush_folder(folder)


def flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
