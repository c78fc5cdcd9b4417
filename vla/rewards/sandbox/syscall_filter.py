"""The seccomp filter (classic BPF) of system calls that a jailed program must not make.

It denies calls that make namespaces or mounts, read other processes, or slow down the tracing
process. It also denies calls that hold memory outside all limits: memfd, System V, larger pipes and
sockets, connections that nothing accepts.
"""

from __future__ import annotations

import errno
import platform
import struct
from functools import cache

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""The column of a system call's numbers, and the number of the architecture in `linux/audit.h`."""

_DENIED = {  # numbers on x86_64 and on aarch64, from `asm/unistd.h`; -1: there is none
    **{
        "unshare": (272, 97),
        "setns": (308, 268),
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
    },
    **{
        "chroot": (161, 51),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
    },
    **{
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fspick": (433, 433),
        "mount_setattr": (442, 442),
    },
    **{"name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265)},
    **{
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "kcmp": (312, 272),
    },
    **{"pidfd_getfd": (438, 438), "process_madvise": (440, 440)},
    **{"setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119)},
    **{"sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "ioprio_set": (251, 30)},
    **{
        "memfd_create": (319, 279),
        "memfd_secret": (447, 447),
        "vmsplice": (278, 75),
        "mq_open": (240, 180),
    },
    **{"shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "listen": (50, 201)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280)},
    **{"io_setup": (206, 0), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426)},
    **{"io_uring_register": (427, 427), "userfaultfd": (323, 282), "perf_event_open": (298, 241)},
    **{"inotify_init": (253, -1), "inotify_init1": (294, 26), "fanotify_init": (300, 262)},
}
_CLONE, _CLONE3, _CONNECT, _SOCKET, _SETSOCKOPT = (
    (56, 220),
    (435, 435),
    (42, 203),
    (41, 198),
    (54, 208),
)
_FCNTL, _PRLIMIT, _SETRLIMIT, _SEND_SIGNAL = (72, 25), (302, 261), (160, 164), (62, 129)
_SETSID = (112, 157)
_NEW_NAMESPACE_OR_UNTRACED = 0x7E820000
_RLIMIT_AS, _SOL_SOCKET, _F_SETPIPE_SZ = 9, 1, 1031
_BUFFER_SIZES = (7, 8, 32, 33)  # SO_SNDBUF, SO_RCVBUF and what root may set beyond the maximum
_UNIX, _INET, _INET6, _NOT_STREAM = 1, 2, 10, 0xE
_HIGH = 6

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

Condition = tuple[int, str, int]
"""Argument number (the lower half of its 64 bits; the upper one with `_HIGH` added), comparison,
value."""


@cache
def filter_for_this_machine() -> bytes:
    """The instructions of the filter.

    Raises:
        ValueError: The system calls of this processor are not in the tables of this module.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise ValueError(
            f"no filter of system calls for {machine}, only for {', '.join(ARCHITECTURES)}"
        )
    column, architecture = ARCHITECTURES[machine]
    program = [
        *(_step(_LOAD, 4), _step(_EQUAL, architecture, 1, 0), _step(_RETURN, _KILL)),
        *(
            _step(_LOAD, 0),
            _step(_AT_LEAST, 0x40000000, 0, 1),
            _step(_RETURN, _ERRNO | errno.ENOSYS),
        ),
    ]
    for call, conditions, code in _rules():
        if call[column] >= 0:
            program += _rule(call[column], conditions, code)
    return b"".join([*program, _step(_RETURN, _ALLOW)])


def _rules() -> list[tuple[tuple[int, int], list[Condition], int]]:
    """The rules (system call, conditions on its arguments, errno): a call is denied where all
    conditions hold."""
    return [
        *((call, [], errno.EPERM) for call in _DENIED.values()),
        (
            _CLONE3,
            [],
            errno.ENOSYS,
        ),  # its flags lie in memory, where no filter sees them; the C library then uses clone
        (_CLONE, [(0, "&", _NEW_NAMESPACE_OR_UNTRACED)], errno.EPERM),
        (_CONNECT, [], errno.ENETUNREACH),
        (
            _SETSID,
            [],
            0,
        ),  # done, it seems: the scheduler would give each session as much as another program
        (_SOCKET, [(0, "!=", family) for family in (_UNIX, _INET, _INET6)], errno.EAFNOSUPPORT),
        (_SOCKET, [(0, "==", _UNIX), (1, "&", _NOT_STREAM)], errno.EPERM),
        *(
            (_SETSOCKOPT, [(1, "==", _SOL_SOCKET), (2, "==", name)], errno.EPERM)
            for name in _BUFFER_SIZES
        ),
        (_FCNTL, [(1, "==", _F_SETPIPE_SZ)], errno.EPERM),
        (_SEND_SIGNAL, [(0, "==", 1)], errno.EPERM),
        (_SETRLIMIT, [(0, "==", _RLIMIT_AS)], errno.EPERM),
        (_PRLIMIT, [(0, "!=", 0)], errno.EPERM),
        *(
            (_PRLIMIT, [(1, "==", _RLIMIT_AS), (2 + half, "!=", 0)], errno.EPERM)
            for half in (0, _HIGH)
        ),
    ]


def _rule(number: int, conditions: list[Condition], code: int) -> list[bytes]:
    steps = [_step(_RETURN, _ERRNO | code), _step(_LOAD, 0)]
    for argument, comparison, value in reversed(conditions):
        skip = len(steps) - 1
        jump = {"==": (_EQUAL, 0, skip), "!=": (_EQUAL, skip, 0), "&": (_ANY_BIT, 0, skip)}[
            comparison
        ]
        offset = 16 + 8 * (argument % _HIGH) + 4 * (argument // _HIGH)
        steps = [_step(_LOAD, offset), _step(jump[0], value, *jump[1:]), *steps]
    return [_step(_EQUAL, number, 0, len(steps)), *steps]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
