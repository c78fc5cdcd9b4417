"""Nested timers that sum to the wall clock, and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

OTHER = "other"


@dataclass
class TimedPart:
    """Seconds spent under one name, and its nested parts."""

    seconds: float = 0.0
    parts: dict[str, TimedPart] = field(default_factory=dict)


class Timer:
    """Timer of nested blocks: `with timer("rollout"): ... with timer("render"): ...`.

    Blocks of one name inside the same block add up. The time of a block outside its parts is
    reported as "other", so the numbers sum to the total at every level. `clock` returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.start = clock()
        self.root = TimedPart()
        self.stack = [self.root]

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        part = self.stack[-1].parts.setdefault(name, TimedPart())
        self.stack.append(part)
        started = self.clock()
        try:
            yield
        finally:
            part.seconds += self.clock() - started
            self.stack.pop()

    def seconds(self) -> dict[str, float]:
        """Seconds so far by path: {"total": 9, "rollout": 8, "rollout/render": 3, "other": 1,
        ...}."""
        total = self.clock() - self.start
        return {"total": total, **flatten(self.root, "", total)}


def flatten(part: TimedPart, prefix: str, seconds: float) -> dict[str, float]:
    """Seconds of nested parts by path, with the rest under "other"."""
    flat = {}
    for name, inner in part.parts.items():
        flat[prefix + name] = inner.seconds
        flat |= flatten(inner, f"{prefix}{name}/", inner.seconds)
    if part.parts:
        flat[prefix + OTHER] = seconds - sum(inner.seconds for inner in part.parts.values())
    return flat


def peak_memory_bytes() -> int:
    """Peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
