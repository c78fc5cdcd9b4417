"""Process settings to make before torch loads: threads, memory allocator, offline hub.

    from vla import runtime
    runtime.prepare()

Three defaults do not fit training on a small machine. OpenMP threads that spin while another
process runs cost 5-10x in wall time. The C allocator returns large blocks to the system after every
step and faults them in again. Requests to an unreachable hub take minutes. A variable that the user
has set stays.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
M_ARENA_MAX = -8
"""Parameters of glibc's `mallopt` (malloc.h)."""


REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
"""Pattern of a hub repository: user/name, or user/name@revision."""


def is_hub_name(name: str) -> bool:
    """True for user/name[@revision] where neither that path nor a folder `user` exists here."""
    return (
        REPOSITORY.fullmatch(name) is not None
        and not Path(name).exists()
        and not Path(name).parent.is_dir()
    )


def prepare(num_threads: int | None = None, offline: bool = True) -> None:
    """Make the process settings.

    Args:
        num_threads: OpenMP threads; None: torch's default.
        offline: make no request to the hub.

    Raises:
        RuntimeError: after torch was imported.
    """
    if "torch" in sys.modules:
        raise RuntimeError(
            "vla.runtime.prepare() must run before torch is imported: its settings would have no "
            "effect"
        )
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if num_threads:
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
    if offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    keep_freed_memory()


def world_size() -> int:
    """Number of processes that a launcher (accelerate, torchrun) started, from WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def keep_freed_memory() -> bool:
    """Make the C allocator keep large freed blocks for the next step; True on success (glibc only).

    The tensors of a training step have the sizes of the previous step. By default each block of
    more than 32 MiB is mapped and unmapped, and its pages are faulted in again: a quarter of a
    step's time on some machines. All threads share one arena, because separate arenas fault pages
    in again with every pass.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (M_MMAP_MAX, 0),
        (M_TRIM_THRESHOLD, 2**31 - 1),
        (M_TOP_PAD, 64 * 2**20),
        (M_ARENA_MAX, 1),
    )
    accepted = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(accepted)
