"""Clients that ask as robots do, a few times a second, and how long each answer takes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vla.serve.client import RemotePolicy

PERIOD_SECONDS = 0.1


def observation(policy_spec: dict[str, Any], state_size: int) -> dict[str, Any]:
    """An observation of the right shapes."""
    size = policy_spec["image_size"]
    picture = np.full((size, size, 3), 128, np.uint8)
    return {
        "images": dict.fromkeys(policy_spec["cameras"], picture),
        "state": np.zeros(state_size, np.float32),
        "prompt": "pick it up",
    }


def find_state_size(policy: RemotePolicy) -> int:
    """How many numbers a state has: the server says so when it is told another number."""
    try:
        policy.infer(observation(policy.policy_spec, 0))
    except ValueError as error:
        return int(str(error).split("state must be ")[1].split()[0])
    return 0


def measure_latencies(server: Any, num_robots: int, seconds: float) -> list[float]:
    """Seconds from question to answer, of all robots for so many seconds."""
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(num_robots) as pool:
        answers = pool.map(
            lambda i: run_robot(server.address, end, i / num_robots), range(num_robots)
        )
        return [waited for robot in answers for waited in robot]


def run_robot(address: str, end: float, phase: float) -> list[float]:
    """One robot. Raises ValueError when it is refused: who asks rightly is served whatever others
    do."""
    found: list[float] = []
    policy = RemotePolicy(address)
    asked = observation(policy.policy_spec, find_state_size(policy))
    next_turn = time.monotonic() + phase * PERIOD_SECONDS
    while next_turn < end:
        time.sleep(max(0.0, next_turn - time.monotonic()))
        begin = time.perf_counter()
        policy.infer(asked)
        found.append(time.perf_counter() - begin)
        next_turn = max(next_turn + PERIOD_SECONDS, time.monotonic())
    policy.close()
    return found
