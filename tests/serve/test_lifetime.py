"""A signal ends a policy server when what was in flight is answered."""

import json
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.serve.small_server import observation
from vla.serve.client import RemotePolicy
from vla.serve.codec import pack
from vla.serve.server_process import raise_file_limit

ROOT = Path(__file__).parents[2]
SERVER = """
import os, sys, time
import numpy as np
from vla.serve.server_process import serve_until_signal
from vla.serve.limits import ServerLimits
from vla.serve.requests import ObservationSpec
from vla.serve.server import PolicyServer

def act(shown):
    while "slowly" in shown.instruction and not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    return np.repeat(shown.proprio[:, None, :2], 5, axis=1)

limits = ServerLimits(8, 4, 8, 2**20, 0.0, drain_seconds=float(sys.argv[2]))
server = PolicyServer(act, ObservationSpec(("front",), 4, 3), {"action_spec": {}}, limits)
sys.exit(serve_until_signal(server, "127.0.0.1", 0, "small"))
"""
"""A server in a process of its own; its policy answers "slowly" when the file argv[1] is there."""


@contextmanager
def started(gate: Path, drain: float) -> Iterator[tuple[subprocess.Popen, str]]:
    command = [sys.executable, "-c", SERVER, str(gate), str(drain)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert "small is served at ws://127.0.0.1:" in line
            yield process, line.split()[4]
        finally:
            process.kill()


def wait_until_asked(address: str) -> None:
    """Until the server has a request in flight."""
    while True:
        with urllib.request.urlopen(address.replace("ws", "http") + "/status") as answer:
            if json.load(answer)["asking"] == 1:
                return
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_is_answered_and_new_requests_are_refused(number, tmp_path):
    with started(tmp_path / "gate", drain=60.0) as (process, address):
        slow, other = RemotePolicy(address), RemotePolicy(address)
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(slow.infer(observation(3.0, prompt="slowly")))
        )
        asking.start()
        wait_until_asked(address)
        process.send_signal(number)
        assert "stopping: 1 requests in flight are answered first" in process.stdout.readline()
        with pytest.raises(ValueError, match="this server is stopping"):
            other.infer(observation())
        with pytest.raises(ValueError, match=r"refuses \(503\): this server is stopping"):
            RemotePolicy(address)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(address.replace("ws", "http") + "/healthz")
        (tmp_path / "gate").touch()
        asking.join()
        assert answers[0][0, 0] == 3.0
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
        with pytest.raises(ValueError, match="the policy server ended the connection"):
            slow.infer(observation())
        slow.close()
        other.close()


def test_a_policy_that_does_not_come_back_ends_with_an_error(tmp_path):
    with started(tmp_path / "never", drain=0.2) as (process, address):
        policy = RemotePolicy(address)
        policy.connection.send(pack(observation(prompt="slowly")))
        wait_until_asked(address)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
        assert "not answered within --drain-seconds 0.2" in process.stderr.read()
        with pytest.raises(ValueError, match="the server stopped before it could answer"):
            policy._receive()
        policy.close()


def test_a_server_asks_for_the_files_that_its_clients_take():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        raise_file_limit(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        raise_file_limit(10)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        if before[1] != resource.RLIM_INFINITY:
            with pytest.raises(
                ValueError,
                match=r"--max-clients needs \d+ open files, this process may have \d+",
            ):
                raise_file_limit(before[1] + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
