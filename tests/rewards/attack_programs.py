"""What test_attacks.py runs: programs that `marked` has given a name, `ctypes`, `os`, `signal`,
`sys` and `time`."""

SURVIVORS = {
    "a session of its own, streams closed": "os.setsid()\nfor fd in (0, 1, 2): os.close(fd)\ntime.sleep(60)",
    "a busy session of its own": "os.setsid()\nwhile True: pass",
    "a daemon by two forks": """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in (0, 1, 2): os.close(fd)
        time.sleep(60)
    os._exit(0)
""",
    "sessions that ignore every signal": """
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
time.sleep(60)
""",
    "process groups of their own": """
for _ in range(4):
    if os.fork() == 0:
        os.setpgid(0, 0)
        while True: pass
time.sleep(60)
""",
    "children that are stopped": """
for _ in range(3):
    if os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(60)
""",
    "a chain of forks": "while True:\n  if os.fork(): os._exit(0)\n  os.setsid()",
    "a chain that the parent waits for": """
while True:
    child = os.fork()
    if child == 0: continue
    os.waitpid(child, 0)
""",
    "a fork bomb": "while True:\n  try: os.fork()\n  except OSError: time.sleep(.01)",
    "threads that never end": """
import threading
for _ in range(5): threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()
""",
    "a program of another name": """
import subprocess
subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)
subprocess.Popen(["/bin/sh", "-c", "trap '' TERM HUP INT; while :; do :; done"])
time.sleep(60)
""",
    "files made for ever": """
for _ in range(2): os.fork()
number = 0
while True:
    number += 1
    try: os.mkdir(f"{os.getpid()}-{number}")
    except OSError: pass
""",
}

# What each program prints is what it could take, in the unit of its limit; it does not wait to be
# refused politely.
TAKERS = {
    "memory in one process": (
        "memory_bytes",
        "held = []\nwhile True:\n  held.append(bytearray(2**20)); os.write(1, b'%d ' % 2**20)",
    ),
    "memory in many processes": (
        "memory_bytes",
        """
for _ in range(4):
    try: child = os.fork()
    except OSError: break
    if child == 0:
        held = []
        try:
            while True: held.append(b"x" * 2**20); os.write(1, b"%d " % 2**20)
        except MemoryError: time.sleep(60)
time.sleep(1)
""",
    ),
    "memory by a chain of forks": (
        "memory_bytes",
        """
held = []
while True:
    try:
        held.append(b"x" * (2**20 * 8)); os.write(1, b"%d " % (2**20 * 8))
        if os.fork(): time.sleep(60)
    except (MemoryError, OSError): time.sleep(60)
""",
    ),
    "memory shared and let go": (
        "memory_bytes",
        """
import mmap
held = []
try:
    while True:
        held.append(mmap.mmap(-1, 2**20)); held[-1].write(b"x" * 2**20); os.write(1, b"%d " % 2**20)
except (MemoryError, OSError): pass
""",
    ),
    "memory that belongs to no process": (
        "memory_bytes",
        """
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
held = []
for _ in range(64):
    try:
        descriptor = os.memfd_create("x"); os.ftruncate(descriptor, 2**22)
        os.write(descriptor, b"x" * 2**22); os.write(1, b"%d " % 2**22)
    except OSError: pass
    key = libc.shmget(0, 2**22, 0o1666)
    if key >= 0:
        place = libc.shmat(key, None, 0); ctypes.memset(place, 1, 2**22); libc.shmdt(ctypes.c_void_p(place))
        os.write(1, b"%d " % 2**22)
for number in range(64):
    queue = libc.msgget(0, 0o1666)
    if queue >= 0: os.write(1, b"%d " % 2**14)
for folder in ("/dev/shm", "/tmp", "/run", "/var/tmp", "/", "/dev", "/proc"):
    try: open(folder + "/x", "wb").write(b"x" * 2**22); os.write(1, b"%d " % 2**22)
    except OSError: pass
""",
    ),
    "memory in pipes and sockets": (
        "memory_bytes",
        """
import fcntl, socket
def fill(write):
    try:
        while True: os.write(1, b"%d " % write(b"x" * 2**16))
    except OSError: pass
def one():
    held = []
    try:
        while True:
            a, b = socket.socketpair(); held += [a, b]
            for end in (a, b):
                end.setblocking(False)
                try: end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**24)
                except OSError: pass
                fill(end.send)
            reader, writer = os.pipe(); os.set_blocking(writer, False)
            try: fcntl.fcntl(writer, 1031, 2**20)
            except OSError: pass
            fill(lambda data: os.write(writer, data))
    except OSError: pass
    return held
for _ in range(2): os.fork()
held = one()
time.sleep(1)
""",
    ),
    "connections that nobody accepts": (
        "memory_bytes",
        """
import socket
server = socket.socket(socket.AF_UNIX); server.bind("s")
try: server.listen(4096)
except OSError: sys.exit()
for _ in range(4096):
    client = socket.socket(socket.AF_UNIX); client.connect("s"); client.setblocking(False)
    try:
        while True: os.write(1, b"%d " % client.send(b"x" * 2**16))
    except OSError: client.close()
""",
    ),
    "one file after another": (
        "disk_bytes",
        """
number = 0
while True:
    number += 1
    with open(f"f{number}", "wb", buffering=0) as file: os.write(1, b"%d " % file.write(b"x" * 2**20))
""",
    ),
    "files that are deleted while open": (
        "disk_bytes",
        """
held = []
while True:
    held.append(open("f", "wb", buffering=0)); os.unlink("f")
    os.write(1, b"%d " % held[-1].write(b"x" * 2**20))
""",
    ),
    "empty files, links and pipes": (
        "num_files",
        """
number = 0
while True:
    number += 1
    open(f"f{number}", "w").close(); os.write(1, b"1 ")
    os.symlink("f", f"l{number}"); os.write(1, b"1 ")
    os.mkfifo(f"p{number}"); os.write(1, b"1 ")
""",
    ),
    "folders in folders": (
        "num_files",
        "while True: os.mkdir('d'); os.chdir('d'); os.write(1, b'1 ')",
    ),
    "processes": (
        "num_processes",
        """
os.write(1, b"1 ")
while True:
    try:
        if os.fork() == 0: os.write(1, b"1 ")
    except OSError: time.sleep(60)
""",
    ),
    "threads": (
        "num_processes",
        """
import _thread
os.write(1, b"1 ")
while True:
    _thread.start_new_thread(time.sleep, (60,)); os.write(1, b"1 ")
""",
    ),
}

FORBIDDEN = """
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
NEW = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
for flag in NEW:
    if libc.unshare(flag) == 0: print("unshared", hex(flag))
    arguments = [ctypes.c_long(value) for value in (flag | signal.SIGCHLD, 0, 0, 0, 0)]
    child = libc.syscall(ctypes.c_long(56 if os.uname().machine == "x86_64" else 220), *arguments)
    if child == 0: os._exit(0)
    if child > 0: print("cloned", hex(flag))
for source, target, kind, flags in ((b"tmpfs", b".", b"tmpfs", 0), (b"/", b".", None, 4096), (None, b"/usr", None, 32)):
    if libc.mount(source, target, kind, flags, None) == 0: print("mounted", target)
if libc.umount2(b"/usr", 2) == 0 or libc.umount2(b"/proc", 2) == 0: print("unmounted")
if os.getpid() != 1 and libc.ptrace(16, 1, 0, 0) == 0: print("traced")
for path in ("/proc/1/mem", "/proc/1/environ", "/proc/1/root", "/proc/1/fd/0", "/proc/kcore"):
    try: print("opened", path, os.open(path, os.O_RDONLY))
    except OSError: pass
for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/user/max_user_namespaces"):
    try: print("may write", path, os.open(path, os.O_WRONLY))
    except OSError: pass
changes = [lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.chroot("."), lambda: os.setpriority(0, 1, 19)]
changes += [lambda: os.sched_setaffinity(1, {0}), lambda: os.mknod("m", 0o20666, os.makedev(1, 1))]
for change in changes:
    try: change(); print("changed")
    except OSError: pass
import resource
for kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
    try: resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2); print("raised", kind)
    except (OSError, ValueError): pass
    try: resource.prlimit(1, kind, (0, 0)); print("limited the first process")
    except OSError: pass
print("done")
"""
