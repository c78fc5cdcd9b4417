"""Verifiers in a process that can be killed: a time limit, a memory limit, and NaN when one of them strikes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from vla.rewards.sample import UNSCORABLE, Sample

_MAX_REPLY_BYTES = 2**16


class VerifierProcess:
    """Runs verifiers by name (`worker.find_verifier`) on samples, one after the other.

    A verifier that takes longer than `timeout_seconds`, asks for more than `memory_bytes`, raises or kills its process
    makes its sample unscorable (NaN), is counted in `failures` with its reason, and the process is started anew.
    `startup_seconds` is allowed to import a verifier's library when it is first asked for.
    """

    def __init__(self, timeout_seconds: float = 5.0, memory_bytes: int = 2**32, startup_seconds: float = 120.0) -> None:
        if timeout_seconds <= 0:
            raise ValueError(f"verifier_timeout_seconds ({timeout_seconds}) must be positive")
        self.timeout_seconds, self.memory_bytes, self.startup_seconds = timeout_seconds, memory_bytes, startup_seconds
        self.failures: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: set[str] = set()
        self._unread = b""

    def score(self, verifier: str, samples: Sequence[Sample]) -> list[float]:
        """A score for each sample; NaN where the verifier failed.

        Raises ValueError when there is no such verifier.
        """
        return [self._score_one(verifier, sample) for sample in samples]

    def _score_one(self, verifier: str, sample: Sample) -> float:
        if verifier not in self._ready:
            self._warm_up(verifier)
        reply = self._ask({"verifier": verifier, "sample": asdict(sample)}, self.timeout_seconds)
        if "error" in reply:
            reason = reply["error"].split("\n")[0][:200]
            self.failures[reason] = self.failures.get(reason, 0) + 1
            return UNSCORABLE
        return float(reply["score"])

    def _warm_up(self, verifier: str) -> None:
        reply = self._ask({"verifier": verifier, "warm_up": True}, self.startup_seconds)
        if "error" in reply:
            raise ValueError(reply["error"].removeprefix("ValueError: "))
        # Libraries are imported by the first call, not by finding the function.
        self._ask({"verifier": verifier, "sample": asdict(Sample("1", "1", "1"))}, self.startup_seconds)
        self._ready.add(verifier)

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = self._read_line(process, time.monotonic() + seconds)
        except BrokenPipeError:
            line = None
        if line is None:
            timed_out = process.poll() is None
            self.close()
            return {"error": f"no answer in {seconds:g} s" if timed_out else "the verifier ended its process"}
        return json.loads(line)

    def _read_line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
        """The next line, or None when the deadline passes, the process ends or the line grows without end."""
        assert process.stdout is not None
        while b"\n" not in self._unread:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or len(self._unread) > _MAX_REPLY_BYTES:
                return None
            if select.select([process.stdout], [], [], remaining)[0]:
                piece = os.read(process.stdout.fileno(), 2**16)
                if not piece:
                    process.wait(timeout=1)
                    return None
                self._unread += piece
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        paths = [root, *[p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "vla.rewards.worker", str(self.memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        return self._process

    def close(self) -> None:
        """End the process and whatever it started."""
        process, self._process = self._process, None
        self._ready.clear()
        self._unread = b""
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> VerifierProcess:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
