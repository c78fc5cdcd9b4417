"""How files are written so that a crash, a power cut or a full disk leaves the old one or the new
one, never half."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished-"
"""What the name of a file begins with while it is being written."""
NUMBERS = re.compile(r"\[\n\s+(?:(?:-?\d[\d.eE+-]*|null)(?:,\n\s+)?)+\n\s*\]")
"""A JSON list of numbers, one a line."""
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(OSError):
    """There is no room on a disk; the message names the path, and what is intact."""


def is_disk_full(error: BaseException) -> bool:
    """Whether the error says that the disk, or the user's share of it, is full (safetensors says so
    only in words)."""
    full = isinstance(error, DiskFull) or (
        isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS
    )
    return full or "No space left" in str(error)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path to write a file to; after the block it is on the disk and stands at `path`, replacing
    what was there.

    Raises DiskFull, after which the old file stands as it was.
    """
    unfinished = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    try:
        yield unfinished
        flush_file(unfinished)
        unfinished.replace(path)
        flush_folder(path.parent)
    except Exception as error:
        unfinished.unlink(missing_ok=True)
        if not is_disk_full(error):
            raise
        raise DiskFull(f"the disk is full, {path} was not written: make room, then go on") from None


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file so that a reader, or a crash, sees the old text or the new one."""
    with atomic_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def join_number_list(numbers: re.Match[str]) -> str:
    """A list of numbers without its line breaks."""
    return f"[{' '.join(numbers[0][1:-1].split())}]"


def write_json(path: Path, values: Any) -> None:
    """Replace a JSON file; ValueError for NaN and infinity, which are no JSON. A list of numbers
    stands on one line."""
    text = json.dumps(values, indent=1, allow_nan=False)
    write_atomically(path, NUMBERS.sub(join_number_list, text) + "\n")


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """An empty folder to write files to; after the block they are on the disk and the folder stands
    at `final`.

    A folder that was there is set aside first and removed last, so that at every moment one of the
    two is whole (`restore_folders` puts back what a crash between the two renames left aside).
    """
    unfinished, aside = (final.with_name(f"{kind}{final.name}") for kind in (UNFINISHED, REPLACED))
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        flush_tree(unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if final.exists():
        final.rename(aside)
    unfinished.rename(final)
    flush_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


REPLACED = ".replaced-"
"""What the name of a folder begins with while its successor takes its place."""


def restore_folders(parent: Path) -> None:
    """Put back folders whose successor never took their place, and remove what a crash while
    writing left."""
    for aside in parent.glob(f"{REPLACED}*"):
        final = parent / aside.name.removeprefix(REPLACED)
        shutil.rmtree(aside) if final.exists() else aside.rename(final)
    remove_unfinished(parent)


def remove_unfinished(folder: Path) -> None:
    """Remove what a crash while writing left."""
    for path in folder.glob(f"{UNFINISHED}*"):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def flush_file(path: Path) -> None:
    """Make sure that a file is on the disk."""
    with path.open("rb") as opened:
        os.fsync(opened.fileno())


def flush_tree(folder: Path) -> None:
    """Make sure that all that is under a folder is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush_folder(path) if path.is_dir() else flush_file(path)


def flush_folder(folder: Path) -> None:
    """Make sure that the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
