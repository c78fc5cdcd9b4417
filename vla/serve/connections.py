"""The open connections of a policy server: admission, limits per address, and eviction."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter
from collections.abc import Sequence

from websockets.asyncio.server import Server, ServerConnection
from websockets.frames import CloseCode, Frame
from websockets.protocol import Event
from websockets.server import ServerProtocol

from vla.serve.batching import Client
from vla.serve.limits import RateLimiter, ServerLimits

WRITE_BYTES = 2**20
"""Bytes that may wait to be read by a client; every answer is shorter."""
SLICE_BYTES = 2048
"""Bytes that are parsed before the connection is checked again."""
SMALL_BYTES = 1024
"""Frames below this size are small: they come at most `max_rate` times a second."""
SMALL_FRAMES = 200
"""Small frames that may come at once."""
MAX_UNADMITTED = 128
"""Connections that are no clients: handshakes in progress and connections being closed."""
FIRST_REQUEST_SECONDS = 0.02
"""Seconds in which a new client cannot be evicted: a few round trips of a local network. A longer
time would let a client that opens connections quickly keep others out."""
IPV6_NETWORK_BITS = 64
"""Bits of an IPv6 address that name the network; a provider gives each customer one network."""


class Connection(ServerConnection):
    """A connection that registers itself with `connections`, and is dropped when it floods the
    server."""

    def __init__(
        self,
        protocol: ServerProtocol,
        server: Server,
        *,
        connections: Connections,
        **settings: object,
    ):
        super().__init__(protocol, server, **settings)  # type: ignore[arg-type]
        self.connections = connections
        self.small_frames = RateLimiter(connections.limits.max_rate, SMALL_FRAMES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.connections.add_unadmitted(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data in slices: a few kilobytes hold thousands of frames, and one of them may
        end the connection."""
        for begin in range(0, len(data), SLICE_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[begin : begin + SLICE_BYTES])

    def process_event(self, event: Event) -> None:
        """Count small frames: a frame costs the same whatever its size, and only an attacker sends
        floods of pings or of empty fragments."""
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
        """Drop the connection: more than `WRITE_BYTES` wait, so it does not read its answers."""
        super().pause_writing()
        self.loop.call_soon(self.transport.abort)


class Connections:
    """The clients of a server, and the connections that are not admitted.

    An address has at most `max_per_address` clients; there are at most `max_clients` in all.
    """

    def __init__(self, limits: ServerLimits):
        self.limits = limits
        self.clients: dict[ServerConnection, Client] = {}
        self.unadmitted: dict[ServerConnection, None] = {}
        self.closing: set[asyncio.Task[None]] = set()

    def add_unadmitted(self, connection: ServerConnection) -> None:
        """Register a connection that is no client; the oldest beyond `MAX_UNADMITTED` is dropped.

        The bound holds for open files too, however many handshakes begin and never end. The newest
        connection keeps the time that a handshake takes.
        """
        self.unadmitted[connection] = None
        if len(self.unadmitted) > MAX_UNADMITTED:
            oldest = next(iter(self.unadmitted))
            del self.unadmitted[oldest]
            oldest.transport.abort()

    def remove(self, connection: ServerConnection) -> None:
        """Remove a connection that has ended."""
        self.unadmitted.pop(connection, None)
        client = self.clients.pop(connection, None)
        if client is not None:
            client.has_left = True

    def admit(self, connection: ServerConnection) -> Client | str:
        """Make a connection a client, or give the reason why there is no room for it."""
        now = time.monotonic()
        address = client_address(connection.remote_address)
        neighbours = [other for other, client in self.clients.items() if client.address == address]
        candidates = []
        if len(neighbours) >= self.limits.max_per_address:
            num_served = len(neighbours)
            reason = f"{num_served} clients of this address are served already (--max-per-address)"
            candidates = neighbours
        elif len(self.clients) >= self.limits.max_clients:
            reason = f"{len(self.clients)} clients are served already (--max-clients)"
            candidates = list(self.clients)
        if candidates and not self._evict_idle(candidates, now):
            return reason
        self.unadmitted.pop(connection, None)
        client = Client(address, now)
        self.clients[connection] = client
        return client

    def _evict_idle(self, candidates: list[ServerConnection], now: float) -> bool:
        """Close one idle connection; False where none may be closed.

        Clients that were never answered go first, then those of the most crowded address, then the
        longest idle.
        """
        num_at = Counter(client.address for client in self.clients.values())

        def priority(connection: ServerConnection) -> tuple[bool, int, float]:
            client = self.clients[connection]
            return client.has_been_answered, -num_at[client.address], client.idle_since

        idle = [
            connection for connection in candidates if self._is_idle(self.clients[connection], now)
        ]
        if not idle:
            return False
        evicted = min(idle, key=priority)
        self.clients.pop(evicted).has_left = True
        self.add_unadmitted(evicted)
        reason = "idle, and another client needed the place"
        task = asyncio.create_task(evicted.close(CloseCode.TRY_AGAIN_LATER, reason))
        self.closing.add(task)
        task.add_done_callback(self.closing.discard)
        return True

    def _is_idle(self, client: Client, now: float) -> bool:
        patience = self.limits.idle_seconds if client.has_been_answered else FIRST_REQUEST_SECONDS
        return not client.is_in_flight and now - client.idle_since >= min(
            patience, self.limits.idle_seconds
        )

    @property
    def num_in_flight(self) -> int:
        """Clients with a request that is not answered yet."""
        return sum(client.is_in_flight for client in self.clients.values())


def client_address(remote: Sequence[object] | None) -> str:
    """The IPv4 address of a client, or the network of its IPv6 address."""
    if remote is None:
        return "unknown"
    try:
        address = ipaddress.ip_address(str(remote[0]).partition("%")[0])
    except (ValueError, IndexError):
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, IPV6_NETWORK_BITS), strict=False))
    return str(address)
