"""Timing side by side: every candidate in every round, so that a busy machine slows all of them
alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Median wall and CPU seconds of one call; CPU time counts every thread of the process."""

    wall: float
    cpu: float


def side_by_side(
    candidates: Mapping[str, Callable[[], object]], num_rounds: int
) -> dict[str, Timing]:
    """Call each candidate once to warm up, then once a round, in turns."""
    walls: dict[str, list[float]] = {name: [] for name in candidates}
    cpus: dict[str, list[float]] = {name: [] for name in candidates}
    for candidate in candidates.values():
        candidate()
    for _ in range(num_rounds):
        for name, candidate in candidates.items():
            wall, cpu = time.perf_counter(), time.process_time()
            candidate()
            walls[name].append(time.perf_counter() - wall)
            cpus[name].append(time.process_time() - cpu)
    middle = num_rounds // 2
    return {
        name: Timing(sorted(walls[name])[middle], sorted(cpus[name])[middle]) for name in candidates
    }


def report(timings: Mapping[str, Timing], count: int, unit: str) -> None:
    """Print one line a candidate: how many of `count` units a second, and CPU milliseconds for
    one."""
    width = max(map(len, timings))
    for name, timing in timings.items():
        print(
            f"{name:<{width}}  {count / timing.wall:12,.0f} {unit}/s  {1000 * timing.cpu / count:9.4f} CPU ms each"
        )
