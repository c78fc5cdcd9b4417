"""Timing of candidates side by side: every candidate runs in every round, so a busy machine slows
all of them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Median wall and CPU seconds of one call; CPU time counts every thread of the process."""

    wall: float
    cpu: float


def time_candidates(
    candidates: Mapping[str, Callable[[], object]], num_rounds: int
) -> dict[str, Timing]:
    """Call each candidate once to warm up, then once a round, in turns."""
    walls: dict[str, list[float]] = {name: [] for name in candidates}
    cpus: dict[str, list[float]] = {name: [] for name in candidates}
    for candidate in candidates.values():
        candidate()
    for _ in range(num_rounds):
        for name, candidate in candidates.items():
            wall = time.perf_counter()
            cpu = time.process_time()
            candidate()
            walls[name].append(time.perf_counter() - wall)
            cpus[name].append(time.process_time() - cpu)
    middle = num_rounds // 2
    return {
        name: Timing(sorted(walls[name])[middle], sorted(cpus[name])[middle]) for name in candidates
    }


def print_rates(timings: Mapping[str, Timing], count: int, unit: str) -> None:
    """Print one line a candidate: `count` units a call as units a second and CPU ms a unit."""
    width = max(map(len, timings))
    for name, timing in timings.items():
        rate = count / timing.wall
        cpu_ms = 1000 * timing.cpu / count
        print(f"{name:<{width}}  {rate:12,.0f} {unit}/s  {cpu_ms:9.4f} CPU ms each")
