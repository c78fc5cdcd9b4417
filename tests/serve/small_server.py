"""A server on this machine with a policy that answers by rule, for the tests of this folder."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from vla.serve.access import AccessPolicy
from vla.serve.limits import ServerLimits
from vla.serve.requests import ObservationBatch, ObservationSpec
from vla.serve.server import PolicyServer

SIZE, STATE = 4, 3
EXPECTED = ObservationSpec(("front",), SIZE, STATE)
SPEC = {"names": ["dx", "gripper"], "control_hz": 20.0}


def observation(state: float = 0.0, prompt: str = "go") -> dict:
    return {
        "images": {"front": np.zeros((SIZE, SIZE, 3), np.uint8)},
        "state": np.full(STATE, state, np.float32),
        "prompt": prompt,
    }


class Named:
    """Acts by a rule that names its request."""

    def __call__(self, shown: ObservationBatch) -> np.ndarray:
        if "fail" in shown.instruction:
            raise RuntimeError("the weights are gone")
        return np.repeat(shown.proprio[:, None, :2], 5, axis=1)  # [B, H = 5, A = 2]


@contextmanager
def served(
    act, access: AccessPolicy | None = None, expected: ObservationSpec = EXPECTED, **changes
) -> Iterator[SimpleNamespace]:
    numbers = {
        "max_clients": 8,
        "max_batch": 4,
        "max_waiting": 8,
        "max_message_bytes": 2**20,
        "wait_seconds": 0.0,
    }
    policy_spec = {"action_spec": SPEC, "chunk": 5}
    server = PolicyServer(
        act, expected, policy_spec, ServerLimits(**(numbers | changes)), access or AccessPolicy()
    )
    ready, ports, loop = threading.Event(), [], asyncio.new_event_loop()
    task = loop.create_task(
        server.run("127.0.0.1", 0, lambda port: (ports.append(port), ready.set()))
    )

    def work() -> None:
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(30)
        yield SimpleNamespace(address=f"ws://127.0.0.1:{ports[0]}", port=ports[0], server=server)
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        server.batcher.thread.shutdown()
