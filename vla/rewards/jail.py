"""Command lines that run a program with nothing but read-only system files, a folder of its own, and no network.

Two ways: bubblewrap (`bwrap`), or namespaces by util-linux (`unshare`, `setpriv`). Started by root, it is the second,
and the program runs as a user that nothing belongs to, because the kernel does not count root's processes; started by
anyone else, it is the first where there is one, and the program has a user namespace of its own, without capabilities.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Literal

Kind = Literal["bwrap", "unshare"]
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
"""All that a jail's own commands are told; the program inside may read it."""
NOBODY = 63187
"""A user and group number that no account has, for programs started by root."""
SYSTEM_FOLDERS = ("/usr", "/bin", "/lib", "/lib64", "/etc/alternatives")
WORK = "/sandbox"
"""Where the program's folder is seen inside; Python is where it is outside, because its libraries are found by path."""


def available() -> list[Kind]:
    """The kinds of jail that work here, best first; found by running one."""
    kinds: tuple[Kind, ...] = ("unshare",) if os.geteuid() == 0 else ("bwrap", "unshare")
    return [kind for kind in kinds if _works(kind)]


@cache
def _works(kind: Kind) -> bool:
    needed = {"bwrap": ("bwrap", "prlimit"), "unshare": ("unshare", "setpriv", "pivot_root", "mount", "prlimit")}[kind]
    if not sys.platform.startswith("linux") or not all(shutil.which(tool, path=ENVIRONMENT["PATH"]) for tool in needed):
        return False
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        hand_over(Path(folder))
        command = command_line(kind, Path(folder), ["/bin/echo", "alive"])
        try:
            result = subprocess.run(command, capture_output=True, timeout=20, env=ENVIRONMENT)
        except subprocess.TimeoutExpired:
            return False
    return result.stdout == b"alive\n"


def hand_over(folder: Path) -> None:
    """Give a folder and its files to the user the program will run as."""
    folder.chmod(0o700)
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


def command_line(kind: Kind, folder: Path, program: list[str]) -> list[str]:
    """`program` inside a jail that sees `folder` as its working folder, and may write there and nowhere else."""
    return _bwrap(folder, program) if kind == "bwrap" else _unshare(folder, program)


def python_program(script: str) -> list[str]:
    """A program for `command_line` that runs a Python script of the folder, isolated from environment and user site."""
    return [os.path.realpath(sys.executable), "-I", "-B", script]


def _bwrap(folder: Path, program: list[str]) -> list[str]:
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    command += [
        "--clearenv",
        "--setenv",
        "PATH",
        "/usr/bin:/bin",
        "--setenv",
        "HOME",
        WORK,
        "--setenv",
        "LANG",
        "C.UTF-8",
    ]
    for system in SYSTEM_FOLDERS:
        command += ["--ro-bind-try", system, system]
    command += ["--ro-bind", sys.base_prefix, sys.base_prefix, "--proc", "/proc", "--dev", "/dev"]
    return [
        *command,
        "--bind",
        str(folder),
        WORK,
        "--remount-ro",
        "/dev",
        "--remount-ro",
        "/",
        "--chdir",
        WORK,
        *program,
    ]


_SETUP = """
set -eu
mount -t tmpfs -o mode=755,size=16m tmpfs {root}
cd {root}
for folder in {system}; do
    [ -e "$folder" ] || continue
    if [ -L "$folder" ]; then ln -s "$(readlink "$folder")" ".$folder"; continue; fi
    mkdir -p ".$folder"; mount --rbind "$folder" ".$folder"; mount -o remount,bind,ro ".$folder"
done
mkdir -p .{prefix} .{work} proc dev old
mount --bind {prefix} .{prefix}; mount -o remount,bind,ro .{prefix}
mount --bind {folder} .{work}
mount -t proc proc proc
for device in null zero urandom; do touch dev/$device; mount --bind /dev/$device dev/$device; done
pivot_root . old
umount -l /old; rmdir /old
mount -o remount,bind,ro /
cd {work}
exec env -i PATH=/usr/bin:/bin HOME={work} LANG=C.UTF-8 "$@"
"""


def _unshare(folder: Path, program: list[str]) -> list[str]:
    by_root = os.geteuid() == 0
    quote = shlex.quote
    setup = _SETUP.format(
        root="/mnt" if Path("/mnt").is_dir() else "/tmp",
        system=" ".join(SYSTEM_FOLDERS),
        work=WORK,
        prefix=quote(sys.base_prefix),
        folder=quote(str(folder)),
    )
    drop = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    if by_root:
        drop += [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    command = ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    command += [] if by_root else ["--user", "--map-root-user"]
    return [*command, "--", "/bin/sh", "-c", setup, "jail", *drop, *program]
