"""A lock on a folder for work that one process at a time may do."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def hold_file_lock(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder within the block; the kernel releases it when a process ends.

    Yields False on a file system without locks. The result must then appear atomically, by a
    rename.
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
