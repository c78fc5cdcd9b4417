"""Which process writes to the folder of a run: a note with a lock, so that no two do.

The lock is the kernel's: it ends with the process, however that ends. The note (`process start host`) says whose it
is, and stands in for the lock between machines that share a disk.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import socket
from pathlib import Path

NOTE = ".process"
HELD: dict[tuple[int, int], int] = {}
"""{(device, inode): descriptor} of the notes that this process has locked; closing one would unlock it."""


def claim(path: Path) -> None:
    """Note that this process writes to the folder; ValueError when another one that still lives does."""
    note = path / NOTE
    descriptor = opened(note)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ValueError(taken(path, owner_of(descriptor))) from None
        # a file system without locks: the note alone decides
    owner, started, host = owner_of(descriptor)
    mine = str(os.getpid())
    elsewhere = host not in ("", socket.gethostname())
    if owner not in ("", mine) and (elsewhere or started == start_of(owner) != "unknown"):
        raise ValueError(taken(path, (owner, started, host)))
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{mine} {start_of(mine)} {socket.gethostname()}".encode(), 0)
    atexit.register(leave, descriptor, os.getpid())


def opened(note: Path) -> int:
    """A descriptor of the note: the one that is held already, else a new one."""
    descriptor = os.open(note, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    about = os.fstat(descriptor)
    return HELD.setdefault((about.st_dev, about.st_ino), descriptor)


def owner_of(descriptor: int) -> tuple[str, str, str]:
    """Process, start and host in a note; empty where it is empty or damaged."""
    words = os.pread(descriptor, 1000, 0).decode("utf-8", "replace").split()
    owner, started, host = (*words, "", "", "")[:3]
    return (owner, started, host) if owner.isdecimal() else ("", "", "")


def taken(path: Path, owner: tuple[str, str, str]) -> str:
    process, _, host = owner
    if host in ("", socket.gethostname()):
        return f"process {process} is writing to {path}: wait for it, stop it, or choose another run_dir"
    return (
        f"process {process} on {host} is writing to {path}, or was when that machine stopped: wait for it, or delete "
        f"{path / NOTE} once it is over"
    )


def leave(descriptor: int, process: int) -> None:
    """Empty the note when the process that wrote it ends; a child that it forked leaves it alone."""
    if process == os.getpid():
        os.ftruncate(descriptor, 0)


def start_of(process: str) -> str:
    """When a process that lives was started, in the system's ticks: tells it from a later one of the same number."""
    status = Path("/proc") / process / "stat"
    try:
        # The name in brackets may hold spaces; the start time is field 22, the 20th after it.
        return status.read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "unknown"
