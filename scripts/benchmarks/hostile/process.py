"""The server under attack, as users start it: a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


TWIN = """
import numpy as np
from vla.serve.server_process import serve_until_signal
from vla.serve.limits import ServerLimits
from vla.serve.requests import ObservationSpec
from vla.serve.server import PolicyServer

act = lambda shown: np.zeros((len(shown.instruction), 4, 7), np.float32)
limits = ServerLimits(64, 16, 64, 4 * 2**20, 0.003)
serve_until_signal(PolicyServer(act, ObservationSpec(("front", "wrist"), 64, 7, 7), {}, limits), "127.0.0.1", 0, "twin")
"""
"""A server that nobody asks anything: what an attack on it costs everybody is the machine's time
alone."""


class ServerProcess:
    """A running `scripts/serve_policy.py`."""

    def __init__(self, process: subprocess.Popen, port: int, errors: Any):
        self.process, self.port, self.errors = process, port, errors

    @property
    def address(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def memory_mb(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def end(self) -> int:
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def complaints(self) -> str:
        """The last lines of its error stream."""
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")[-2000:]


@contextmanager
def running_server(*command: str) -> Iterator[ServerProcess]:
    """A server on this machine, started by the arguments of Python."""
    command = (sys.executable, *command)
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            try:
                line = process.stdout.readline()
                if "is running_server at" not in line:
                    errors.seek(0)
                    raise SystemExit(
                        errors.read().decode(errors="replace").strip()
                        or f"error: no server: {line}"
                    )
                yield ServerProcess(
                    process, int(line.split("ws://127.0.0.1:")[1].split()[0]), errors
                )
            finally:
                process.kill()
