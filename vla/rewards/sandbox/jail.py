"""Jails: a program with read-only system files, a folder of its own in memory, and no network.

There are three kinds. `unshare`: namespaces by `confine.py` inside a user namespace. `bwrap`: the
same by bubblewrap, for machines where only bubblewrap may make user namespaces. `root`: no user
namespace, for root on machines without them. In each the program runs as a user without
capabilities, and `confine.py` is its first process.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, Literal

from vla.rewards.sandbox import cgroup, confine
from vla.rewards.sandbox.syscall_filter import filter_for_this_machine

JailKind = Literal["unshare", "bwrap", "root"]
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
"""The environment of a jail's own commands."""
_START_SECONDS = 60.0
PROGRAM_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": confine.WORK,
    "LANG": "C.UTF-8",
    # Without it each thread reserves 64 MB of address space, which is the limited quantity.
    "MALLOC_ARENA_MAX": "1",
}
_BOOT = """import marshal
code, request = marshal.load(open(0, "rb", closefd=False))
scope = {"__name__": "confine"}
exec(code, scope)
scope["run"](request)
"""


@dataclass(frozen=True)
class ProgramLimits:
    """The limits of a program and its child processes together; `file_bytes` holds for each file.

    `seconds` is wall time. `memory_bytes` is address space, `disk_bytes` the size of all files,
    `output_bytes` the output that is kept. `num_files` counts files and folders, `num_processes`
    processes and threads. Files are kept in memory, in addition to `memory_bytes`.
    """

    seconds: float = 5.0
    memory_bytes: int = 2**29
    file_bytes: int = 2**22
    disk_bytes: int = 2**25
    num_files: int = 1024
    output_bytes: int = 2**16
    num_processes: int = 16


@dataclass
class Jail:
    """A program in a jail, and the socket for the reports of `confine.py`; closing it ends the
    jail."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    first: bytes = b""

    def wait_for_start(self) -> None:
        """Wait until the program runs or the jail has failed; this time is not the program's."""
        self.control.settimeout(_START_SECONDS)
        with contextlib.suppress(TimeoutError):
            self.first = self.control.recv(1)

    def end(self) -> dict[str, Any]:
        """End the program and its child processes.

        The report holds `returncode` and `stopped`, or `failure`: the reason why the program did
        not start. The process waited for ends after the last one of its process namespace.
        """
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.control.setblocking(False)
        try:
            report = self.control.recv(2**12)
        except BlockingIOError:
            report = b""
        if self.first != b"+" or report[:1] == b"-":
            return {
                "failure": report.lstrip(b"-").decode(errors="replace").strip()
                or "the jail ended at once"
            }
        return marshal.loads(report) if report else {"returncode": -signal.SIGKILL, "stopped": None}


@contextlib.contextmanager
def start_jail(kind: JailKind, files: Mapping[str, bytes], limits: ProgramLimits) -> Iterator[Jail]:
    """Start a jail that runs `main.py` of `files`, with the file `stdin` as its standard input.

    The end of the block ends the program and its child processes.
    """
    ours, theirs = socket.socketpair()
    with (
        ours,
        cgroup.command_in_group(
            limits.memory_bytes + limits.disk_bytes, limits.num_processes
        ) as join,
    ):
        with theirs, os.fdopen(os.memfd_create("request"), "r+b") as request:
            marshal.dump((_code(), _request(kind, files, limits, theirs.fileno())), request)
            request.seek(0)
            process = subprocess.Popen(
                [*join, *_command(kind, limits)],
                stdin=request,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**ENVIRONMENT, **({} if kind == "bwrap" else _libraries(sys.base_prefix))},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        jail = Jail(process, ours)
        with process:
            try:
                jail.wait_for_start()
                yield jail
            finally:
                jail.end()


@cache
def _code() -> CodeType:
    path = Path(confine.__file__)
    return compile(path.read_text(), path.name, "exec")


def _request(
    kind: JailKind, files: Mapping[str, bytes], limits: ProgramLimits, control: int
) -> dict[str, Any]:
    python = _python_inside()
    return {
        "kind": kind,
        "control": control,
        "user": 1,
        "prefix": sys.base_prefix,
        "python": python,
        "environment": {**PROGRAM_ENVIRONMENT, **_libraries(confine.PREFIX)},
        "files": {"stdin": b"", **files},
        "limits": asdict(limits),
        "filter": filter_for_this_machine(),
    }


def _libraries(prefix: str) -> dict[str, str]:
    """The environment of a Python that is linked with a shared library."""
    return {"LD_LIBRARY_PATH": f"{prefix}/lib"}


def _python_inside() -> str:
    """The path of this Python inside the jail."""
    python, prefix = os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)
    if any(Path(python).is_relative_to(folder) for folder in confine.SYSTEM_FOLDERS):
        return python
    return os.path.join(confine.PREFIX, os.path.relpath(python, prefix))


def _command(kind: JailKind, limits: ProgramLimits) -> list[str]:
    python = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-c", _BOOT]
    return _bwrap(limits, [_python_inside(), *python[1:]]) if kind == "bwrap" else python


_SETUP = ("CAP_SYS_ADMIN", "CAP_SETPCAP")


def _bwrap(limits: ProgramLimits, command: list[str]) -> list[str]:
    """The command of bubblewrap; its capabilities are for `confine.py`, the program has none."""
    # Out of memory, the kernel ends the jail and not the process that trains.
    arguments = ["/bin/sh", "-c", 'echo 1000 > /proc/$$/oom_score_adj; exec "$@"', "jail"]
    arguments += [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--as-pid-1",
        "--clearenv",
    ]
    for flag, value in (
        ("--uid", "1"),
        ("--gid", "1"),
        ("--cap-drop", "ALL"),
        *(("--cap-add", c) for c in _SETUP),
    ):
        arguments += [flag, value]
    for name, value in _libraries(confine.PREFIX).items():
        arguments += ["--setenv", name, value]
    for system in confine.SYSTEM_FOLDERS:
        arguments += ["--ro-bind-try", system, system]
    for device in confine.DEVICES:
        arguments += ["--dev-bind", device, device]
    arguments += ["--ro-bind", sys.base_prefix, confine.PREFIX, "--proc", "/proc"]
    arguments += ["--remount-ro", "/proc", "--symlink", confine.WORK, "/dev/shm"]
    arguments += ["--size", str(limits.disk_bytes), "--tmpfs", confine.WORK, "--remount-ro", "/"]
    return [*arguments, "--", *command]


def available_jails() -> list[JailKind]:
    """The kinds of jail that work on this machine, best first; each is tried by a program."""
    return [kind for kind in _kinds() if explain_unavailable(kind) is None]


def _kinds() -> tuple[JailKind, ...]:
    return ("unshare", "root", "bwrap") if os.geteuid() == 0 else ("unshare", "bwrap")


@cache
def explain_unavailable(kind: JailKind) -> str | None:
    """The reason why a kind of jail fails on this machine; None where it works."""
    if not sys.platform.startswith("linux"):
        return "it needs Linux"
    if kind == "bwrap" and shutil.which("bwrap", path=ENVIRONMENT["PATH"]) is None:
        return "not found"
    try:
        with start_jail(kind, {"main.py": b"print('alive')"}, ProgramLimits()) as jail:
            output, errors = jail.process.communicate(timeout=20)
            ended = jail.end()
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return str(error)
    if output == b"alive\n":
        return None
    return (
        errors.decode(errors="replace").strip() or ended.get("failure", "it printed nothing")
    ).split("\n")[-1]


def jail_remedies() -> str:
    """The remedies for this machine by the switches of its kernel, and the failure of each kind."""
    remedies = [remedy for switch, value, remedy in _SWITCHES if _read_switch(switch) == value]
    remedies.append("install bubblewrap (bwrap)")
    remedies.append(
        "in a container, allow user namespaces (docker run --security-opt seccomp=unconfined"
        " --security-opt systempaths=unconfined, or --privileged)"
    )
    failures = ", ".join(f"{kind}: {explain_unavailable(kind)}" for kind in _kinds())
    return f"{'; or '.join(remedies)}. Tried were {failures}"


_SWITCHES = (
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "allow user namespaces (Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0)",
    ),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "allow user namespaces (Debian: sysctl kernel.unprivileged_userns_clone=1)",
    ),
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "allow user namespaces (sysctl user.max_user_namespaces=15000)",
    ),
    (
        "/proc/sys/kernel/yama/ptrace_scope",
        "3",
        "allow tracing (boot with kernel.yama.ptrace_scope=1)",
    ),
)


def _read_switch(switch: str) -> str | None:
    try:
        return Path(switch).read_text().strip()
    except OSError:
        return None
