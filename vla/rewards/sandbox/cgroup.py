"""The control group (cgroup v2) of a jail: the kernel's limits on its memory and processes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

OWN_BYTES = 2**26
"""Memory for the jail's own processes and their kernel structures."""
OWN_PROCESSES = 4


@cache
def find_parent_group() -> Path | None:
    """Find the nearest group above this process that delegates memory and pids and is writable;
    None without one."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        root = next(Path(fields[1]) for fields in mounts if fields[2] == "cgroup2")
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
    except (OSError, StopIteration):
        return None
    for folder in (root / own, *(root / own).parents):
        try:
            controllers = (folder / "cgroup.subtree_control").read_text().split()
        except OSError:
            return None
        if {"memory", "pids"} <= set(controllers) and os.access(folder / "cgroup.procs", os.W_OK):
            return folder
    return None


@contextlib.contextmanager
def command_in_group(memory_bytes: int, num_processes: int) -> Iterator[list[str]]:
    """Yield a command prefix that starts a program in a group with these limits; empty without a
    group."""
    folder = _make(memory_bytes, num_processes)
    try:
        yield (
            []
            if folder is None
            else ["/bin/sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', str(folder)]
        )
    finally:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _make(memory_bytes: int, num_processes: int) -> Path | None:
    above = find_parent_group()
    if above is None:
        return None
    try:
        folder = Path(tempfile.mkdtemp(prefix="sandbox-", dir=above))
        (folder / "memory.max").write_text(str(memory_bytes + OWN_BYTES))
        (folder / "pids.max").write_text(str(num_processes + OWN_PROCESSES))
    except OSError:  # the owner of the group above forbids it
        return None
    with contextlib.suppress(OSError):  # without swap there is no such file
        (folder / "memory.swap.max").write_text("0")
    return folder
