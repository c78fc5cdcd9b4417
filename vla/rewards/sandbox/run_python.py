"""Execution of untrusted Python in a jail, with limits on time, memory, processes, files and
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
    """The end of a program. `started` is False when the jail itself failed, so the program never
    ran.

    `stopped` is the limit that ended it: "time", "output", "memory", "processes", "files" or None.
    A limit that reaches the program as an error of a call does not end it.
    """

    output: bytes
    errors: bytes
    returncode: int
    started: bool
    stopped: str | None


class SandboxUnavailable(ValueError):
    """This machine cannot confine a program, so none runs."""


def choose_jail() -> JailKind:
    """Choose the kind of jail; code never runs unconfined.

    Raises:
        SandboxUnavailable: No kind works on this machine; the message holds the remedies.
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

    The call returns shortly after `limits.seconds` at the latest, and ends all child processes.

    Raises:
        SandboxUnavailable: This machine cannot confine programs.
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
    """Read stdout and stderr up to their end, the time limit or the output limit; the third value
    is the limit reached."""
    assert process.stdout is not None
    assert process.stderr is not None
    outputs = {process.stdout: bytearray(), process.stderr: bytearray()}
    deadline = time.monotonic() + limits.seconds
    stopped = None
    with selectors.DefaultSelector() as selector:
        for stream in outputs:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and stopped is None:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                stopped = "time"
            for key, _ in ready:
                piece = os.read(key.fd, 2**16)
                if not piece:
                    selector.unregister(key.fileobj)
                outputs[key.fileobj] += piece  # type: ignore[index]
            if sum(map(len, outputs.values())) > limits.output_bytes:
                stopped = "output"
    size = limits.output_bytes
    return bytes(outputs[process.stdout][:size]), bytes(outputs[process.stderr][:size]), stopped
