"""Clients with the request rate of robots, and the latency of their answers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.serve.client import RemotePolicy

if TYPE_CHECKING:
    from benchmarks.hostile.process import ServerProcess

PERIOD_SECONDS = 0.1


def observation(policy_spec: dict[str, Any], state_size: int) -> dict[str, object]:
    """An observation of the right shapes."""
    size = policy_spec["image_size"]
    picture = np.full((size, size, 3), 128, np.uint8)
    return {
        "images": dict.fromkeys(policy_spec["cameras"], picture),
        "state": np.zeros(state_size, np.float32),
        "prompt": "pick it up",
    }


def find_state_size(policy: RemotePolicy) -> int:
    """The size of a state, from the error message for another size."""
    try:
        policy.infer(observation(policy.policy_spec, 0))
    except ValueError as error:
        return int(str(error).split("state must be ")[1].split()[0])
    return 0


def measure_latencies(server: ServerProcess, num_robots: int, seconds: float) -> list[float]:
    """Latencies in seconds of all robots over a period."""
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(num_robots) as pool:
        answers = pool.map(
            lambda i: run_robot(server.address, end, i / num_robots), range(num_robots)
        )
        return [latency for robot in answers for latency in robot]


def run_robot(address: str, end: float, phase: float) -> list[float]:
    """Run one robot until `end`; its latencies in seconds.

    Raises:
        ValueError: The server refuses a valid request, which no attack may cause.
    """
    latencies: list[float] = []
    policy = RemotePolicy(address)
    request = observation(policy.policy_spec, find_state_size(policy))
    next_turn = time.monotonic() + phase * PERIOD_SECONDS
    while next_turn < end:
        time.sleep(max(0.0, next_turn - time.monotonic()))
        begin = time.perf_counter()
        policy.infer(request)
        latencies.append(time.perf_counter() - begin)
        next_turn = max(next_turn + PERIOD_SECONDS, time.monotonic())
    policy.close()
    return latencies
