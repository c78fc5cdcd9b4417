"""The verifier process: verifiers under limits of time and memory."""

from __future__ import annotations

import contextlib
import json
import math
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
from vla.rewards.verifiers import ANSWER_PREFIX, VERIFIERS

_MAX_REPLY_BYTES = 2**16
ENOUGH_SAMPLES = 16
"""Failures after which a verifier that never gave a score ends the run."""
ENOUGH_PROMPTS = 4
"""Prompts to which those failures belong at least."""


class VerifierProcess:
    """A process that runs verifiers by name (`verifier_worker.find_verifier`), sample by sample.

    A sample is unscorable (NaN) where its verifier exceeds `timeout_seconds` or `memory_bytes`,
    raises, kills the process or gives no finite number. `failures` counts these by name and reason.
    Importing a verifier's module may take `startup_seconds`, the libraries of our own verifiers
    included. A user's function that imports when it is called has `timeout_seconds` for it.

    Raises:
        ValueError: `timeout_seconds` is not positive.
    """

    def __init__(
        self,
        timeout_seconds: float = 5.0,
        memory_bytes: int = 2**32,
        startup_seconds: float = 120.0,
    ) -> None:
        if timeout_seconds <= 0:
            raise ValueError(f"verifier_timeout_seconds ({timeout_seconds}) must be positive")
        self.timeout_seconds = timeout_seconds
        self.memory_bytes = memory_bytes
        self.startup_seconds = startup_seconds
        self.failures: dict[str, int] = {}
        self._failed_prompts: dict[str, set[str]] = {}
        self._proven: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: set[str] = set()
        self._unread = b""

    def score(self, verifier: str, samples: Sequence[Sample]) -> list[float]:
        """Score each sample; NaN where the verifier failed.

        Raises:
            ValueError: There is no such verifier, or it failed on every sample so far
                (`ENOUGH_SAMPLES` of `ENOUGH_PROMPTS` prompts).
        """
        return [self._score_one(verifier, sample) for sample in samples]

    def check(self, verifier: str) -> None:
        """Import a verifier in the process.

        Raises:
            ValueError: There is no such verifier, or it cannot be imported.
        """
        if verifier not in self._ready:
            self._warm_up(verifier)

    def __getstate__(self) -> dict[str, Any]:
        """Limits and counts: a copy in another process starts verifiers of its own."""
        return {**vars(self), "_process": None, "_ready": set(), "_unread": b""}

    def shard_settings(self) -> dict[str, Any]:
        """Nothing: a worker's verifiers are its own."""
        return {}

    def start_shard(self, iteration: int, number: int, settings: dict[str, Any]) -> None:
        """Clear the failures in a worker, before a shard of a rollout."""
        self.failures = {}

    def state_dict(self) -> dict[str, Any]:
        """The failures of a shard."""
        return {"failures": dict(self.failures)}

    def add_shards(self, states: Sequence[dict[str, Any]]) -> None:
        """Add the failures of the workers."""
        for state in states:
            for reason, count in state["failures"].items():
                self.failures[reason] = self.failures.get(reason, 0) + count

    def _score_one(self, verifier: str, sample: Sample) -> float:
        self.check(verifier)
        reply = self._request(
            {"verifier": verifier, "sample": asdict(sample)}, self.timeout_seconds
        )
        score = reply.get("score", UNSCORABLE)
        if math.isfinite(score):
            self._proven.add(verifier)
            return float(score)
        reason = (
            f"{verifier}: {reply.get('error', f'gave {score}, a score is a finite number')}".split(
                "\n"
            )[0][:200]
        )
        self.failures[reason] = self.failures.get(reason, 0) + 1
        if verifier not in self._proven and ("error" in reply or math.isinf(score)):
            self._note_failure(verifier, sample.prompt, reason)
        return UNSCORABLE

    def _note_failure(self, verifier: str, prompt: str, reason: str) -> None:
        """Count a failure of a verifier that never gave a score.

        NaN does not count: the verifier may score other rows.
        """
        self._failed_prompts.setdefault(verifier, set()).add(prompt)
        num_failed = sum(
            count for name, count in self.failures.items() if name.startswith(f"{verifier}: ")
        )
        if num_failed >= ENOUGH_SAMPLES and len(self._failed_prompts[verifier]) >= ENOUGH_PROMPTS:
            raise ValueError(
                f"verifier {verifier} failed on all of its {num_failed} samples, at last: {reason}"
            )

    def _warm_up(self, verifier: str) -> None:
        reply = self._request({"verifier": verifier, "warm_up": True}, self.startup_seconds)
        if "error" in reply:
            error: str = reply["error"]
            explained = "ValueError: "  # of `find_verifier`: the message is complete
            if error.startswith(explained):
                raise ValueError(error.removeprefix(explained))
            raise ValueError(f"verifier {verifier!r} cannot be imported: {error}")
        if verifier.removeprefix(ANSWER_PREFIX) in VERIFIERS:
            # The first call imports the libraries of our own verifiers.
            self._request(
                {"verifier": verifier, "sample": asdict(Sample("1", "1", "1"))},
                self.startup_seconds,
            )
        self._ready.add(verifier)

    def _request(self, request: dict[str, object], seconds: float) -> dict[str, Any]:
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
            return {
                "error": f"no answer in {seconds:g} s"
                if timed_out
                else "the verifier ended its process"
            }
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _read_line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
        """The next line; None where the deadline passes, the process ends or the line is too
        long."""
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
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "vla.rewards.verifier_worker",
                str(self.memory_bytes),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        return self._process

    def close(self) -> None:
        """Kill the process and its children."""
        process = self._process
        self._process = None
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

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
