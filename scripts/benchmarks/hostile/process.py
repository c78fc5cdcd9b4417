"""The server under attack, in a process of its own as users start it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[3]


TWIN = """
import numpy as np
from vla.serve.server_process import serve_until_signal
from vla.serve.limits import ServerLimits
from vla.serve.requests import ObservationSpec
from vla.serve.server import PolicyServer

act = lambda batch: np.zeros((len(batch.instruction), 4, 7), np.float32)
spec = ObservationSpec(("front", "wrist"), 64, 7, 7)
limits = ServerLimits(64, 16, 64, 4 * 2**20, 0.003)
serve_until_signal(PolicyServer(act, spec, {}, limits), "127.0.0.1", 0, "twin")
"""
"""A server without clients: an attack on it costs the others only the time of the machine."""


class ServerProcess:
    """A running `scripts/serve_policy.py`."""

    def __init__(self, process: subprocess.Popen[str], port: int, errors: IO[bytes]):
        self.process = process
        self.port = port
        self.errors = errors

    @property
    def address(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def memory_mb(self) -> float:
        """Resident memory in MB (2**20 bytes)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def end(self) -> int:
        """Send SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def complaints(self) -> str:
        """The last lines of its error stream."""
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")[-2000:]


@contextmanager
def running_server(*command: str) -> Iterator[ServerProcess]:
    """Run a server on this machine by the arguments of Python."""
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            try:
                assert process.stdout is not None
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
