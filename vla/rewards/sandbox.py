"""Running Python that nobody has read: in a jail, with limits on time, memory, processes, files and output."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vla.rewards.jail import ENVIRONMENT, Kind, available, command_line, hand_over, python_program


@dataclass(frozen=True)
class Limits:
    """`seconds` of wall time; bytes of memory a process, of each file and of output kept; processes and threads
    together.
    """

    seconds: float = 5.0
    memory_bytes: int = 2**29
    file_bytes: int = 2**22
    output_bytes: int = 2**16
    num_processes: int = 16


@dataclass(frozen=True)
class Outcome:
    """How a program ended. `started` is False when the jail itself failed; then nothing is known about the program.

    `stopped` says which limit ended it: "time", "output" or None.
    """

    output: bytes
    errors: bytes
    returncode: int
    started: bool
    stopped: str | None


class NoSandbox(ValueError):
    """This machine can confine no program, so none is run."""


def choose_jail() -> Kind:
    """The kind of jail to use.

    Raises NoSandbox (a ValueError) with the remedy when there is none: code is never run unconfined.
    """
    kinds = available()
    if not kinds:
        raise NoSandbox(
            "code rewards need a sandbox and this machine offers none: install bubblewrap (bwrap), or allow user"
            " namespaces for unshare (sysctl kernel.unprivileged_userns_clone=1)"
        )
    return kinds[0]


_MARK = b"\x02started\n"
_PRELUDE = "import os as _os\n_os.write(2, b'\\x02started\\n')\ndel _os\n"


def run_python(
    source: str, limits: Limits, stdin: bytes = b"", files: Mapping[str, str] | None = None, jail: Kind | None = None
) -> Outcome:
    """Run a program with `files` beside it in a folder that is removed afterwards.

    Whatever it does, this returns within `limits.seconds` and a moment, and everything it started is gone.
    """
    kind = jail or choose_jail()
    with tempfile.TemporaryDirectory(prefix="sandbox-") as name:
        folder = Path(name)
        for file, text in {"main.py": _PRELUDE + source, "stdin": "", **(files or {})}.items():
            (folder / file).write_bytes(text.encode(errors="surrogatepass"))
        (folder / "stdin").write_bytes(stdin)
        hand_over(folder)
        command = command_line(kind, folder, _limited(limits, python_program("main.py")))
        with (folder / "stdin").open("rb") as standard_input:
            return _watch(command, standard_input, limits)


def _limited(limits: Limits, program: list[str]) -> list[str]:
    """Limits are set inside, after privileges are dropped; `prlimit` belongs to util-linux."""
    return [
        "prlimit",
        f"--as={limits.memory_bytes}",
        f"--nproc={limits.num_processes}",
        f"--fsize={limits.file_bytes}",
        "--core=0",
        "--nofile=64",
        f"--cpu={max(1, int(limits.seconds) + 1)}",
        *program,
    ]


def _watch(command: list[str], standard_input: object, limits: Limits) -> Outcome:
    process = subprocess.Popen(
        command,
        stdin=standard_input,  # type: ignore[arg-type]
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    try:
        output, errors, stopped = _read_capped(process, limits)
    finally:
        _kill(process)
    started = errors.startswith(_MARK)
    return Outcome(output, errors.removeprefix(_MARK), process.returncode, started, stopped)


def _read_capped(process: subprocess.Popen[bytes], limits: Limits) -> tuple[bytes, bytes, str | None]:
    """(stdout, stderr, what stopped it): until both end, the time is over, or more comes than is kept."""
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


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the jail: killing its first process ends every process of its namespace, however many there are."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)  # a program that closed its streams is about to end by itself
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
