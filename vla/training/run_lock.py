"""Which process writes to the folder of a run: a note (`process start host`) that two processes
cannot both write."""

from __future__ import annotations

import atexit
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

LOCK_FILE = ".process"


def lock_run_folder(path: Path) -> None:
    """Note that this process writes to the folder; ValueError when another one that still lives
    does, or one of another machine, of which nothing is known here.
    """
    note = (path / LOCK_FILE).absolute()
    mine = f"{os.getpid()} {process_start_time(str(os.getpid()))} {socket.gethostname()}"
    with note.open("a+", encoding="utf-8", errors="replace") as opened:
        with suppress(OSError):  # a file system without locks: the note alone decides
            fcntl.lockf(opened, fcntl.LOCK_EX)
        opened.seek(0)
        check_owner(path, opened.read(1000))
        opened.truncate(0)
        opened.write(mine)
    atexit.register(unlock_run_folder, note, mine, os.getpid())


def check_owner(path: Path, written: str) -> None:
    """Refuse what a note says when its process lives; a damaged note says nothing."""
    owner, started, host = (*written.split(), "", "", "")[:3]
    if not owner.isdecimal():
        return
    if host not in ("", socket.gethostname()):
        raise ValueError(
            f"process {owner} on {host} is writing to {path}, or was when that machine stopped: wait for it, or delete "
            f"{path / LOCK_FILE} once it is over"
        )
    if owner != str(os.getpid()) and started == process_start_time(owner) != "unknown":
        raise ValueError(
            f"process {owner} is writing to {path}: wait for it, stop it, or choose another run_dir"
        )


def unlock_run_folder(note: Path, mine: str, process: int) -> None:
    """Empty the note when the process that wrote it ends; a child that it forked leaves it
    alone."""
    with suppress(OSError):
        if process == os.getpid() and note.read_text() == mine:
            note.write_text("")


def process_start_time(process: str) -> str:
    """When a process that lives was started, in the system's ticks: tells it from a later one of
    the same number."""
    status = Path("/proc") / process / "stat"
    try:
        # The name in brackets may hold spaces; the start time is field 22, the 20th after it.
        return status.read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "unknown"
