"""The process of a policy server: it serves until a signal, answers the requests in flight and
ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from vla.interrupt import handle_signals
from vla.serve.connections import MAX_UNADMITTED
from vla.serve.server import PolicyServer

Handler = Callable[[int, FrameType | None], object] | int | None
COLLECTION_THRESHOLDS = (500, 4, 1)
"""Thresholds of the garbage collector's three generations (`gc.set_threshold`)."""
SPARE_FILES = 200
"""Open files of a server besides its connections."""


def serve_until_signal(server: PolicyServer, host: str, port: int, name: str) -> int:
    """Serve `name` at an address.

    Returns:
        The exit code: 0 where every request in flight at the end was answered, else 1.
    """
    raise_file_limit(server.limits.max_clients + MAX_UNADMITTED + SPARE_FILES)
    tune_garbage_collection()
    # asyncio logs a warning for every write to a client that has left.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    if asyncio.run(_serve(server, host, port, name)):
        return 0
    print(
        "error: requests in flight were not answered within --drain-seconds "
        f"{server.limits.drain_seconds:g}",
        file=sys.stderr,
    )
    sys.stderr.flush()
    os._exit(1)  # the interpreter would wait for the policy's thread, which may never return


def tune_garbage_collection() -> None:
    """Make garbage collections frequent and short, since every client waits for them.

    Loaded objects are frozen: no collection walks through them again. Ended connections leave
    cycles of some 60 objects each.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTION_THRESHOLDS)


def raise_file_limit(needed: int) -> None:
    """Raise the limit of open files, of which each connection is one.

    Raises:
        ValueError: The hard limit of this process is lower.
    """
    import resource

    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed >= needed or allowed == resource.RLIM_INFINITY:
        return
    if most != resource.RLIM_INFINITY and most < needed:
        raise ValueError(
            f"--max-clients needs {needed} open files, this process may have {most}: "
            "raise ulimit -n"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


async def _serve(server: PolicyServer, host: str, port: int, name: str) -> bool:
    loop = asyncio.get_running_loop()
    previous: dict[int, Handler] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        for signal_number, handler in previous.items():  # a second signal ends the process at once
            signal.signal(signal_number, handler)
        loop.call_soon_threadsafe(server.stop)
        print(
            f"stopping: {server.connections.num_in_flight} requests in flight are answered first",
            flush=True,
        )

    def announce(bound: int) -> None:
        scheme = "ws" if server.access.tls is None else "wss"
        address = f"[{host}]" if ":" in host else host
        print(f"{name} is served at {scheme}://{address}:{bound} (Ctrl-C ends)", flush=True)

    with handle_signals(stop) as handlers:
        previous |= handlers
        return await server.run(host, port, announce)
