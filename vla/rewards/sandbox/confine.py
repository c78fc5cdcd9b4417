"""The first process of a jail: it makes namespaces and folders, starts the program, and traces it.

`jail.py` sends this module's code object with a request, so it imports only the standard library.
ptrace stops each process of the program at its birth. The memory is then divided anew, so that all
of them together stay within the limit. When this process ends, the kernel kills the rest of its
process namespace.
"""

from __future__ import annotations

import _thread  # `threading` and `signal` take longer to load than a program takes to run
import ctypes
import marshal
import os
import resource
import select
import time
from typing import Any

SYSTEM_FOLDERS = ("/usr", "/bin", "/lib", "/lib64", "/etc/alternatives")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
PREFIX, WORK = "/python", "/sandbox"
"""Paths of the Python installation and of the program's folder inside the jail."""
SOCKET_BYTES = 2**24
"""Kernel memory of 64 open sockets of a process; each process but the first is charged with it."""
SPARE_USER = 61184
"""The first of 4096 user numbers that no account has."""

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = (
    1,
    2,
    4,
    8,
    4096,
    16384,
    1 << 18,
)
_MS_REMOUNT, _MS_MOVE, _MNT_DETACH, _SYS_MOUNT_SETATTR, _AT_RECURSIVE = 32, 8192, 2, 442, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = (
    1,
    4,
    22,
    24,
    38,
)
_PTRACE_CONT, _PTRACE_GETEVENTMSG, _PTRACE_SEIZE, _PTRACE_LISTEN = 7, 0x4201, 0x4206, 0x4208
_TRACE_BIRTHS = (
    0x2 | 0x4 | 0x8 | 0x100000
)  # fork, vfork and clone; and whoever is traced dies with the tracer
_SIGKILL, _SIGTRAP = 9, 5
_BIRTHS, _EVENT_STOP, _WAIT_FOR_THREADS = (1, 2, 3), 128, 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the C library that returns 0, or fails with errno."""
    typed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    if getattr(_libc, name)(*typed):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())


def run(request: dict[str, Any]) -> None:
    """Run the program of a request; report its start (+ or -) and its end on the `control`
    socket."""
    control = request["control"]
    os.set_inheritable(control, False)
    try:
        if request["kind"] != "bwrap":
            _enter_namespaces(request)
            _make_root(request)
        limited = _make_work_folder(request)
        program = _Program(request, polled=not limited)
        os.write(control, b"+")
        os.write(control, marshal.dumps(program.watch()))
    except Exception as error:
        os.write(control, f"-{type(error).__name__}: {error}".encode(errors="replace")[:2000])
    os._exit(0)


def _enter_namespaces(request: dict[str, Any]) -> None:
    """Continue as the first process of new namespaces; the previous process waits until they are
    empty, and ends."""
    spaces = (
        os.CLONE_NEWNS
        | os.CLONE_NEWPID
        | os.CLONE_NEWNET
        | os.CLONE_NEWIPC
        | os.CLONE_NEWUTS
        | os.CLONE_NEWCGROUP
    )
    spare = SPARE_USER + os.getpid() % 4096
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(
            "1000"
        )  # out of memory, the kernel ends this jail and not the process that trains
    os.chdir(
        request["prefix"]
    )  # a relative path from here does not tell where the installation lies
    if request["kind"] == "root":
        os.unshare(spaces)
        request["user"] = spare
    else:
        _with_user_namespace(spaces, spare)
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        os._exit(0)
    if (
        request["kind"] == "root"
    ):  # whose real user is the program's may limit it without another capability
        os.setresgid(spare, 0, 0)
        os.setresuid(spare, 0, 0)
    _call("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def _with_user_namespace(spaces: int, spare: int) -> None:
    """Enter a user namespace.

    Root maps the program to a user of its own. Other users, and root without the capability, map it
    to themselves.
    """
    ready, go = os.pipe()
    process = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.close(go)
        os.read(ready, 1)
        try:
            _map_users(f"/proc/{process}", f"0 0 1\n1 {spare} 1\n" if os.geteuid() == 0 else "")
            os._exit(0)
        except OSError:
            os._exit(1)
    os.unshare(spaces | os.CLONE_NEWUSER)
    os.write(go, b"x")
    if os.waitpid(helper, 0)[1]:
        raise PermissionError("the users of the new user namespace cannot be mapped")


def _map_users(process: str, several: str) -> None:
    def write(name: str, text: str) -> None:
        with open(f"{process}/{name}", "w") as file:
            file.write(text)

    if several:
        try:
            write("uid_map", several)
            write("gid_map", several)
            return
        except PermissionError:
            pass
    write("setgroups", "deny")
    write("uid_map", f"1 {os.geteuid()} 1\n")
    write("gid_map", f"1 {os.getegid()} 1\n")


def _make_root(request: dict[str, Any]) -> None:
    """Make a root of read-only system files, the Python installation, three devices and the
    processes of this jail."""
    base = "/mnt" if os.path.isdir("/mnt") else "/tmp"
    _mount("", "/", flags=_MS_REC | _MS_PRIVATE)
    installation = os.open(".", os.O_PATH)
    _mount("tmpfs", base, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m,nr_inodes=100")
    for folder in SYSTEM_FOLDERS:
        if os.path.islink(folder):
            os.symlink(os.readlink(folder), base + folder)
        elif os.path.isdir(folder):
            os.makedirs(base + folder)
            _bind_read_only(folder, base + folder)
    for folder in (PREFIX, WORK, "/proc", "/dev", "/old"):
        os.mkdir(base + folder)
    os.fchdir(installation)
    if request["python"].startswith(PREFIX):
        try:
            _mount_overlay(base + PREFIX, base + WORK)
        except OSError:
            _bind_read_only(".", base + PREFIX)
    for device in DEVICES:
        os.close(os.open(base + device, os.O_CREAT | os.O_WRONLY))
        _mount(device, base + device, flags=_MS_BIND)
    os.symlink(
        WORK, base + "/dev/shm"
    )  # shared memory and semaphores lie among the program's files
    # Read-only: where the program is root outside, it could otherwise set the kernel's switches.
    _mount("proc", base + "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_RDONLY)
    os.chdir(base)
    _call("pivot_root", b".", b"old")
    _call("umount2", b"/old", _MNT_DETACH)
    os.rmdir("/old")
    _mount("", "/", flags=_MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def _mount_overlay(target: str, empty: str) -> None:
    """Mount the working folder as an overlay, which shows its source as given (a relative path); a
    bind mount shows the real one."""
    _mount("python", target, "overlay", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, f"lowerdir=.:{empty}")


def _hide_bind_mount() -> None:
    """Replace bubblewrap's bind mount by an overlay."""
    os.chdir(PREFIX)
    _mount_overlay(WORK, WORK)
    _call("umount2", PREFIX.encode(), _MNT_DETACH)
    _mount(WORK, PREFIX, flags=_MS_MOVE)


def _bind_read_only(source: str, target: str) -> None:
    _mount(source, target, flags=_MS_BIND | _MS_REC)
    attributes = (ctypes.c_uint64 * 4)(_MS_RDONLY | _MS_NOSUID | _MS_NODEV, 0, 0, 0)
    size = ctypes.sizeof(attributes)
    _call(
        "syscall",
        _SYS_MOUNT_SETATTR,
        -100,
        target.encode(),
        _AT_RECURSIVE,
        ctypes.byref(attributes),
        size,
    )


def _make_work_folder(request: dict[str, Any]) -> bool:
    """Make the program's folder in memory with its files.

    Its size leaves the program `disk_bytes` and `num_files` beyond the given files. The result is
    True where the kernel limits the number of files.
    """
    files, limits, user = request["files"], request["limits"], request["user"]
    pages = sum((len(content) + 4095) // 4096 for content in files.values())
    size, inodes = limits["disk_bytes"] + 4096 * pages, limits["num_files"] + len(files) + 1
    options = f"mode=700,size={size},nr_inodes={inodes},uid={user},gid={user}"
    limited = True
    if request["kind"] == "bwrap":
        try:
            _hide_bind_mount()
        except OSError:
            os.chdir("/")  # bubblewrap gave no capabilities, or the kernel has no overlays
    try:
        _mount("tmpfs", WORK, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
        if request["kind"] == "bwrap":
            os.unshare(os.CLONE_NEWNET)  # bubblewrap's has a loopback device
    except PermissionError:
        if request["kind"] != "bwrap":
            raise
        # Bubblewrap without capabilities, by AppArmor: its own folder has a size and no count.
        limited = False
    os.chdir(WORK)
    for name, content in files.items():
        with open(name, "wb") as file:
            file.write(content)
        os.chown(name, user, user)
    return limited


class _Program:
    """The program and the processes it starts."""

    def __init__(self, request: dict[str, Any], polled: bool) -> None:
        self.limits, self.polled = request["limits"], polled
        self.stopped: str | None = None
        self.half_born: set[int] = set()
        self.known: set[int] = set()
        self.threads: set[int] = set()
        self.most_processes, self.priority = 1, 0
        self.free_files = os.statvfs(WORK).f_ffree
        self._start(request)

    def _start(self, request: dict[str, Any]) -> None:
        """Start the program as a traced process.

        Raises RuntimeError when it cannot be executed.
        """
        ready, go = os.pipe()
        failed, fail = os.pipe()
        self.main = os.fork()
        if self.main == 0:
            try:
                os.read(ready, 1)
                _become_program(request)
            except Exception as error:
                os.write(fail, f"{type(error).__name__}: {error}".encode(errors="replace")[:2000])
            os._exit(1)
        _call("ptrace", _PTRACE_SEIZE, self.main, 0, _TRACE_BIRTHS)
        self.known.add(self.main)
        _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
        os.close(fail)
        # Before the program runs: where it has our user, the kernel's limit on processes counts
        # this thread too.
        _thread.start_new_thread(self._listen, (request["control"],))
        os.write(go, b"x")
        if reason := os.read(failed, 2000):
            raise RuntimeError(reason.decode(errors="replace"))

    def watch(self) -> dict[str, Any]:
        """Wait for the end of the program, and return its exit code and the exceeded limit."""
        while not self.stopped:
            try:
                process, status = os.waitpid(-1, _WAIT_FOR_THREADS)
            except ChildProcessError:
                break
            if os.WIFSTOPPED(status):
                self._go_on(process, os.WSTOPSIG(status), status >> 16)
            elif process == self.main:
                return {"returncode": os.waitstatus_to_exitcode(status), "stopped": self.stopped}
            else:
                self.known.discard(process)
                self.half_born.discard(process)
                if process not in self.threads:
                    self._share_memory()
                self.threads.discard(process)
        return {"returncode": -_SIGKILL, "stopped": self.stopped}

    def _listen(self, control: int) -> None:
        """End the jail when the other side of `control` closes, or long after its time; count
        files."""
        until = time.monotonic() + self.limits["seconds"] + 10
        while (left := until - time.monotonic()) > 0:
            if select.select([control], [], [], 0.001 if self.polled else left)[0]:
                break
            if self.free_files - os.statvfs(WORK).f_ffree > self.limits["num_files"]:
                self.stopped = "files"
                os.kill(self.main, _SIGKILL)
        os._exit(0)

    def _go_on(self, process: int, number: int, event: int) -> None:
        if event in _BIRTHS:
            child = ctypes.c_ulong()
            self._trace(_PTRACE_GETEVENTMSG, process, ctypes.byref(child))
            if os.path.exists(f"/proc/{process}/task/{child.value}"):
                self.threads.add(child.value)
            # The half born count: the stop of the one before may not have been seen yet.
            num_there = len(self.known) + len(self.half_born)
            if child.value not in self.threads or num_there >= self.limits["num_processes"]:
                self._share_memory()
            self._half_born(child.value)
            self._trace(_PTRACE_CONT, process, 0)
        elif event == _EVENT_STOP and process not in self.known:
            self._half_born(process)
        elif event == _EVENT_STOP and number != _SIGTRAP:
            self._trace(_PTRACE_LISTEN, process, 0)
        else:
            self._trace(_PTRACE_CONT, process, 0 if event else number)

    def _half_born(self, process: int) -> None:
        """Continue a new process once its parent's event and its own stop have both arrived, in any
        order."""
        if process in self.half_born:
            self.half_born.remove(process)
            self.known.add(process)
            self._trace(_PTRACE_CONT, process, 0)
        else:
            self.half_born.add(process)

    def _trace(self, request: int, process: int, data: Any) -> None:
        if not self.stopped:
            _libc.ptrace(ctypes.c_long(request), ctypes.c_long(process), ctypes.c_long(0), data)

    def _share_memory(self) -> None:
        """Let each process grow by an equal share of the free memory, or stop the program without
        any.

        A process may grow between its measurement and its limit, so it is measured again. A process
        born meanwhile stays stopped until it has a limit.
        """
        total = self.limits["memory_bytes"]
        for _ in range(4):
            sizes = self._sizes()
            left = total - sum(sizes.values()) - SOCKET_BYTES * max(0, len(sizes) - 1)
            if left < 0 or self.stopped:
                self.stopped = self.stopped or "memory"
                return
            self._weigh_as_one(list(sizes))
            ends = {process: size + left // len(sizes) for process, size in sizes.items()}
            for process, end in ends.items():
                try:
                    resource.prlimit(process, resource.RLIMIT_AS, (end, total))
                except ProcessLookupError:
                    continue
            if all(size <= ends.get(process, size) for process, size in self._sizes().items()):
                return
        self.stopped = "memory"

    def _weigh_as_one(self, processes: list[int]) -> None:
        """Lower the priority by three steps, half the processor time, for each doubling of the
        processes."""
        if len(processes) >= 2 * self.most_processes:
            self.most_processes *= 2
            self.priority += 3
            for process in processes:
                try:
                    os.setpriority(os.PRIO_PROCESS, process, self.priority)
                except OSError:  # it has ended, or this jail may not
                    continue

    def _sizes(self) -> dict[int, int]:
        """Measure the address space of each process in bytes; count threads too, where the kernel's
        own limit does not hold."""
        sizes, tasks = {}, 0
        for name in os.listdir("/proc"):
            if not name.isdigit() or name == "1":
                continue
            try:
                tasks += os.stat(f"/proc/{name}/task").st_nlink - 2
                with open(f"/proc/{name}/statm", "rb") as file:
                    size = int(file.read().split()[0]) * resource.getpagesize()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if size:
                sizes[int(name)] = size
        if tasks > self.limits["num_processes"]:
            self.stopped = "processes"
        return sizes


def _become_program(request: dict[str, Any]) -> None:
    """Set the limits, give up every privilege, and execute the program."""
    limits, user = request["limits"], request["user"]
    os.dup2(os.open("stdin", os.O_RDONLY), 0)
    same_user = {"unshare": 3, "bwrap": 2, "root": 2}[request["kind"]] if os.getuid() == user else 0
    seconds = max(1, int(limits["seconds"]) + 1)
    for kind, most in {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_NPROC: limits["num_processes"] + same_user,
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_SIGPENDING: 256,
    }.items():
        resource.setrlimit(kind, (most, most))
    if os.geteuid() != user:
        os.setgroups([])
        os.setresgid(user, user, user)
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break
    os.setresuid(user, user, user)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capset", ctypes.byref(header), ctypes.byref(none))
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _install_filter(request["filter"])
    python = request["python"]
    os.execve(python, [python, "-I", "-B", "main.py"], request["environment"])


def _install_filter(instructions: bytes) -> None:
    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    program = Filter(len(instructions) // 8, instructions)
    _call("prctl", _PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0)
