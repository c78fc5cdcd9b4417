"""Lock of a run folder: a file `process start host` that names the process writing to it."""

from __future__ import annotations

import atexit
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

LOCK_FILE = ".process"


def lock_run_folder(path: Path) -> None:
    """Lock a run folder for this process until it ends.

    Raises:
        ValueError: for a folder locked by another running process, or from another machine, whose
            processes are not visible here.
    """
    lock = (path / LOCK_FILE).absolute()
    owner = f"{os.getpid()} {process_start_time(str(os.getpid()))} {socket.gethostname()}"
    with lock.open("a+", encoding="utf-8", errors="replace") as file:
        with suppress(OSError):  # on a file system without locks the content alone decides
            fcntl.lockf(file, fcntl.LOCK_EX)
        file.seek(0)
        check_owner(path, file.read(1000))
        file.truncate(0)
        file.write(owner)
    atexit.register(unlock_run_folder, lock, owner, os.getpid())


def check_owner(path: Path, content: str) -> None:
    """Refuse a folder whose lock names a running process; a damaged lock is ignored.

    Raises:
        ValueError: with the owner's process number.
    """
    owner, started, host = (*content.split(), "", "", "")[:3]
    if not owner.isdecimal():
        return
    if host not in ("", socket.gethostname()):
        raise ValueError(
            f"process {owner} on {host} is writing to {path}, or was when that machine stopped: "
            f"wait for it, or delete {path / LOCK_FILE} once it is over"
        )
    if owner != str(os.getpid()) and started == process_start_time(owner) != "unknown":
        raise ValueError(
            f"process {owner} is writing to {path}: wait for it, stop it, or choose another run_dir"
        )


def unlock_run_folder(lock: Path, owner: str, process: int) -> None:
    """Empty the lock file when its owner ends; a forked child leaves it alone."""
    with suppress(OSError):
        if process == os.getpid() and lock.read_text() == owner:
            lock.write_text("")


def process_start_time(process: str) -> str:
    """Start time of a running process in clock ticks; "unknown" where it does not run.

    It tells a process from a later one with the same number.
    """
    status = Path("/proc") / process / "stat"
    try:
        # The name in brackets may hold spaces; the start time is field 22, the 20th after it.
        return status.read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "unknown"
