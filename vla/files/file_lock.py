"""A lock on a folder, for what several processes would otherwise make at once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def hold_file_lock(folder: Path) -> Iterator[bool]:
    """Within the block no other process is in such a block; the kernel unlocks what a process
    leaves behind. False on a file system without locks, where nothing is held: what is made must
    then appear at once, by a rename.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        locked = False
        with suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
            locked = True
        yield locked
    finally:
        os.close(descriptor)
