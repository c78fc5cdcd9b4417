"""A control group (cgroup v2) for a jail: the kernel's own limit on the memory and processes of all
of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

OWN_BYTES = 2**26
"""For the jail's first processes, and what the kernel keeps for each."""
OWN_PROCESSES = 4


@cache
def find_parent_group() -> Path | None:
    """The nearest group above this process that hands out memory and pids and may be written; None:
    there is none."""
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
    """A command that starts another one in a group with these limits; it is empty where there can
    be no group."""
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
    except OSError:  # whoever owns the group above allows no more
        return None
    with contextlib.suppress(OSError):  # without swap there is no such file
        (folder / "memory.swap.max").write_text("0")
    return folder
