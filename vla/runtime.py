"""The process a script runs in: threads, memory allocator, hub. To be called before torch is
loaded.

    from vla import runtime
    runtime.prepare()

OpenMP threads that spin while another process runs cost 5-10x in wall time, the C allocator returns
large blocks to the system after every step and faults them in again, and a hub that cannot be
reached is asked for minutes: each is a default that does not fit training on a small machine. A
variable the user has set is left alone.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Parameters of glibc's `mallopt` (malloc.h)."""


REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
"""How a repository of the hub is called: user/name."""


def is_hub_name(name: str) -> bool:
    """Whether only the hub can hold what is called so: user/name, where here is neither it nor a
    folder `user`."""
    return (
        REPOSITORY.fullmatch(name) is not None
        and not Path(name).exists()
        and not Path(name).parent.is_dir()
    )


def prepare(num_threads: int | None = None, offline: bool = True) -> None:
    """Set what must be set before torch loads. `num_threads` None: torch decides; `offline`: the
    hub is not asked."""
    if "torch" in sys.modules:
        raise RuntimeError(
            "vla.runtime.prepare() must run before torch is imported: its settings would have no effect"
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
    """How many processes a launcher (accelerate, torchrun) started: it says so in WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def keep_freed_memory() -> bool:
    """Make the C allocator keep large freed blocks for the next step; returns whether it could be
    done (glibc only).

    The tensors of a training step have the same sizes as those of the step before. By default each
    block of more than 32 MiB is mapped and unmapped, and its pages are faulted in anew: a quarter
    of the time of a step on some machines. All threads share one arena: in arenas of their own they
    fault pages in anew with every pass.
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
