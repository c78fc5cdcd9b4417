"""Running Python that nobody has read: in a jail, with limits on time, memory, processes, files and
output."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from vla.rewards.sandbox.jail import JailKind, available_jails, jail_remedies, start_jail
from vla.rewards.sandbox.jail import ProgramLimits as ProgramLimits


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended. `started` is False when the jail itself failed; then nothing is known
    about the program.

    `stopped` says which limit ended it: "time", "output", "memory", "processes", "files" or None. A
    limit that the program is told of, by an error of what it asked for, does not end it.
    """

    output: bytes
    errors: bytes
    returncode: int
    started: bool
    stopped: str | None


class SandboxUnavailable(ValueError):
    """This machine can confine no program, so none is run."""


def choose_jail() -> JailKind:
    """The kind of jail to use.

    Raises NoSandbox (a ValueError) with the remedy when there is none: code is never run
    unconfined.
    """
    kinds = available_jails()
    if not kinds:
        raise SandboxUnavailable(
            f"code rewards need a sandbox and this machine offers none: {jail_remedies()}"
        )
    return kinds[0]


def run_python(
    source: str,
    limits: ProgramLimits,
    stdin: bytes = b"",
    files: Mapping[str, str] | None = None,
    jail: JailKind | None = None,
) -> ProgramResult:
    """Run a program with `files` beside it in a folder of its own.

    Whatever it does, this returns within `limits.seconds` and a moment, and everything it started
    is gone.
    """
    texts = {"main.py": source, **(files or {})}
    contents = {name: text.encode(errors="surrogatepass") for name, text in texts.items()}
    kind = jail or choose_jail()
    try:
        with start_jail(kind, {**contents, "stdin": stdin}, limits) as running:
            output, errors, stopped = _read_capped(running.process, limits)
            ended = running.end()
    except OSError as error:  # this process may start no other, or has no descriptors left
        return ProgramResult(b"", str(error).encode(), -1, False, None)
    if "failure" in ended:
        return ProgramResult(output, ended["failure"].encode() + b" " + errors, -1, False, stopped)
    return ProgramResult(output, errors, ended["returncode"], True, stopped or ended["stopped"])


def _read_capped(
    process: subprocess.Popen[bytes], limits: ProgramLimits
) -> tuple[bytes, bytes, str | None]:
    """(stdout, stderr, what stopped it): until both end, the time is over, or more comes than is
    kept."""
    assert process.stdout is not None
    assert process.stderr is not None
    kept = {process.stdout: bytearray(), process.stderr: bytearray()}
    deadline, stopped = time.monotonic() + limits.seconds, None
    with selectors.DefaultSelector() as selector:
        for stream in kept:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and stopped is None:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                stopped = "time"
            for key, _ in ready:
                piece = os.read(key.fd, 2**16)
                if not piece:
                    selector.unregister(key.fileobj)
                kept[key.fileobj] += piece  # type: ignore[index]
            if sum(map(len, kept.values())) > limits.output_bytes:
                stopped = "output"
    cut = limits.output_bytes
    return bytes(kept[process.stdout][:cut]), bytes(kept[process.stderr][:cut]), stopped
