"""A policy server as a process: it serves until a signal, and ends when what was in flight is
answered."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

from vla.interrupt import handle_signals
from vla.serve.connections import MAX_STRANGERS
from vla.serve.server import PolicyServer

COLLECT_AFTER = (500, 4, 1)
"""Objects until the youngest are collected, and how many of such rounds until older ones are."""
SPARE_FILES = 200
"""Files that a server has open besides its connections."""


def serve_until_signal(server: PolicyServer, host: str, port: int, name: str) -> int:
    """Serve `name` at an address; the exit code: 0 when all that was in flight at the end was
    answered, else 1."""
    allow_files(server.limits.max_clients + MAX_STRANGERS + SPARE_FILES)
    spread_collection()
    logging.getLogger("asyncio").setLevel(
        logging.ERROR
    )  # it warns of every write to a client that has left
    if asyncio.run(_serve(server, host, port, name)):
        return 0
    print(
        f"error: not all was answered within --drain-seconds {server.limits.drain_seconds:g}",
        file=sys.stderr,
    )
    sys.stderr.flush()
    os._exit(1)  # the policy's thread may never come back, and the interpreter would wait for it


def spread_collection() -> None:
    """Let the garbage collector work often and briefly: everybody waits for it. What was loaded
    stays and is not walked through again; what ended connections leave behind (cycles of some 60
    objects each) is collected by the hundred.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def allow_files(needed: int) -> None:
    """Let this process have so many files open, of which each connection is one. Raises ValueError
    where it may not."""
    import resource

    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed >= needed or allowed == resource.RLIM_INFINITY:
        return
    if most != resource.RLIM_INFINITY and most < needed:
        raise ValueError(
            f"--max-clients asks for {needed} open files, this process may have {most}: ulimit -n"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


async def _serve(server: PolicyServer, host: str, port: int, name: str) -> bool:
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        for signal_number, handler in before.items():  # a second signal ends the process at once
            signal.signal(signal_number, handler)
        loop.call_soon_threadsafe(server.stop)
        print(
            f"stopping: {server.connections.num_asking} requests in flight are answered first",
            flush=True,
        )

    def announce(taken: int) -> None:
        scheme = "ws" if server.access.tls is None else "wss"
        address = f"[{host}]" if ":" in host else host
        print(f"{name} is served at {scheme}://{address}:{taken} (Ctrl-C ends)", flush=True)

    with handle_signals(stop) as outside:
        before |= outside
        return await server.run(host, port, announce)
