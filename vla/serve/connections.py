"""The open connections of a policy server: whose they are, and which one gives way when there is no
room."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter
from typing import Any

from websockets.asyncio.server import Server, ServerConnection
from websockets.frames import CloseCode, Frame
from websockets.protocol import Event
from websockets.server import ServerProtocol

from vla.serve.batching import Client
from vla.serve.limits import RateLimiter, ServerLimits

WRITE_BYTES = 2**20
"""Bytes that may wait to be read by a client. No answer is so long."""
SLICE_BYTES = 2048
"""Bytes that are read before the clock is looked at."""
SMALL_BYTES, SMALL_FRAMES = 1024, 200
"""Frames that carry less come at most `max_rate` times a second, and so many at once."""
MAX_STRANGERS = 128
"""Connections that are no clients: those whose handshake is not over, and those that are being
closed."""
FIRST_REQUEST_SECONDS = 0.02
"""How long a new client has to ask for something before it may have to give way: a few turns of a
local network. If it were longer, whoever opens connections quickly would keep newcomers out."""
IPV6_NETWORK_BITS = 64
"""One customer of a provider has all IPv6 addresses that share so many bits."""


class Connection(ServerConnection):
    """A connection that tells `connections` when it begins and ends, and is dropped when it floods
    the server."""

    def __init__(
        self, protocol: ServerProtocol, server: Server, *, connections: Connections, **settings: Any
    ):
        super().__init__(protocol, server, **settings)
        self.connections = connections
        self.small_frames = RateLimiter(connections.limits.max_rate, SMALL_FRAMES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.connections.add_stranger(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A little at a time: a few kilobytes hold thousands of frames, and one of them may end the
        connection."""
        for begin in range(0, len(data), SLICE_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[begin : begin + SLICE_BYTES])

    def process_event(self, event: Event) -> None:
        """A frame costs the same however little it carries; a flood of pings or of empty parts is
        no client's."""
        super().process_event(event)
        if (
            isinstance(event, Frame)
            and len(event.data) < SMALL_BYTES
            and self.small_frames.take() > 0
        ):
            self.protocol.fail(
                CloseCode.POLICY_VIOLATION,
                f"more than {self.small_frames.rate:g} small frames a second",
            )
            self.send_data()
            self.transport.close()

    def pause_writing(self) -> None:
        """More than `WRITE_BYTES` wait to be read: no answer is so long."""
        super().pause_writing()
        self.loop.call_soon(self.transport.abort)


class Connections:
    """Clients and strangers. An address has at most `max_per_address` clients, all together there
    are `max_clients`."""

    def __init__(self, limits: ServerLimits):
        self.limits = limits
        self.clients: dict[ServerConnection, Client] = {}
        self.strangers: dict[ServerConnection, None] = {}
        self.closing: set[asyncio.Task[None]] = set()

    def add_stranger(self, connection: ServerConnection) -> None:
        """One more connection that is no client; the oldest of too many is dropped. That bounds the
        open files however many begin a handshake and never end it, and leaves the newest the time
        that a handshake takes.
        """
        self.strangers[connection] = None
        if len(self.strangers) > MAX_STRANGERS:
            oldest = next(iter(self.strangers))
            del self.strangers[oldest]
            oldest.transport.abort()

    def forget(self, connection: ServerConnection) -> None:
        """A connection that has ended."""
        self.strangers.pop(connection, None)
        client = self.clients.pop(connection, None)
        if client is not None:
            client.has_left = True

    def admit(self, connection: ServerConnection) -> Client | str:
        """The client that a connection becomes, or why there is no room for it."""
        now, address = time.monotonic(), client_address(connection.remote_address)
        same = [one for one, client in self.clients.items() if client.address == address]
        candidates = []
        if len(same) >= self.limits.max_per_address:
            reason = f"{len(same)} clients of this address are served already (--max-per-address)"
            candidates = same
        elif len(self.clients) >= self.limits.max_clients:
            reason = f"{len(self.clients)} clients are served already (--max-clients)"
            candidates = list(self.clients)
        if candidates and not self._make_room(candidates, now):
            return reason
        self.strangers.pop(connection, None)
        self.clients[connection] = client = Client(address, now)
        return client

    def _make_room(self, candidates: list[ServerConnection], now: float) -> bool:
        """Close the connection that is missed least, if one may be closed: first those that never
        were answered, of the address that has most, the longest silent.
        """
        crowd = Counter(client.address for client in self.clients.values())

        def keep(connection: ServerConnection) -> tuple[bool, int, float]:
            client = self.clients[connection]
            return client.was_answered, -crowd[client.address], client.silent_since

        idle = [
            connection for connection in candidates if self._is_idle(self.clients[connection], now)
        ]
        if not idle:
            return False
        gone = min(idle, key=keep)
        self.clients.pop(gone).has_left = True
        self.add_stranger(gone)
        task = asyncio.create_task(
            gone.close(CloseCode.TRY_AGAIN_LATER, "silent, and another client needed the place")
        )
        self.closing.add(task)
        task.add_done_callback(self.closing.discard)
        return True

    def _is_idle(self, client: Client, now: float) -> bool:
        patience = self.limits.idle_seconds if client.was_answered else FIRST_REQUEST_SECONDS
        return not client.is_asking and now - client.silent_since >= min(
            patience, self.limits.idle_seconds
        )

    @property
    def num_asking(self) -> int:
        """Clients whose request is not answered yet."""
        return sum(client.is_asking for client in self.clients.values())


def client_address(remote: Any) -> str:
    """Whom a connection comes from: an IPv4 address, or the network of an IPv6 address."""
    try:
        address = ipaddress.ip_address(str(remote[0]).partition("%")[0])
    except (ValueError, TypeError, IndexError):
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, IPV6_NETWORK_BITS), strict=False))
    return str(address)
