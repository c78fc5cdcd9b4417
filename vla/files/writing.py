"""Atomic writing: after a crash, a power cut or a full disk a file is the old or the new one,
whole."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished-"
"""Prefix of a file's name while it is written."""
NUMBERS = re.compile(r"\[\n\s+(?:(?:-?\d[\d.eE+-]*|null)(?:,\n\s+)?)+\n\s*\]")
"""A JSON list of numbers, one a line."""
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(OSError):
    """A full disk; the message names the path and the files that are intact."""


def is_disk_full(error: BaseException) -> bool:
    """True for an error of a full disk or an exhausted quota; safetensors reports it only in its
    message."""
    full = isinstance(error, DiskFull) or (
        isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS
    )
    return full or "No space left" in str(error)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path to write to; after the block the file is on the disk and replaces `path`.

    Raises DiskFull, after which the old file is intact.
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
    """Replace a small file so that readers and crashes leave the old text or the new one."""
    with atomic_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def join_number_list(numbers: re.Match[str]) -> str:
    """A JSON list of numbers without its line breaks."""
    return f"[{' '.join(numbers[0][1:-1].split())}]"


def write_json(path: Path, values: object) -> None:
    """Replace a JSON file; a list of numbers is on one line.

    Raises ValueError for NaN and infinity.
    """
    text = json.dumps(values, indent=1, allow_nan=False)
    write_atomically(path, NUMBERS.sub(join_number_list, text) + "\n")


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """An empty folder to write to; after the block it is on the disk and replaces `final`.

    The old folder is set aside first and removed last, so one of the two is whole at every moment.
    `restore_folders` puts back a folder that a crash between the two renames left aside.
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
"""Prefix of a folder's name while its successor replaces it."""


def restore_folders(parent: Path) -> None:
    """Put back folders whose replacement did not finish, and remove unfinished files."""
    for aside in parent.glob(f"{REPLACED}*"):
        final = parent / aside.name.removeprefix(REPLACED)
        shutil.rmtree(aside) if final.exists() else aside.rename(final)
    remove_unfinished(parent)


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files of a folder."""
    for path in folder.glob(f"{UNFINISHED}*"):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def flush_file(path: Path) -> None:
    """Flush a file to the disk."""
    with path.open("rb") as opened:
        os.fsync(opened.fileno())


def flush_tree(folder: Path) -> None:
    """Flush all files under a folder to the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush_folder(path) if path.is_dir() else flush_file(path)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
