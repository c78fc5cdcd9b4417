"""The policy server: a websocket in the protocol of openpi's clients
(`openpi_client.WebsocketClientPolicy`).

The server first sends the policy spec. Every message of the client is then an observation,
answered by {"actions": float32 [H, A], "server_timing": {...}}. A request that cannot be answered
gets the reason as text, and the connection stays. `GET /healthz` answers OK, `GET /status` the
counts of requests. Each message is validated before it joins a batch; `docs/reference/security.md`
lists the guarantees.
"""

from __future__ import annotations

import asyncio
import http
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from vla.serve.access import AccessPolicy
from vla.serve.batching import Batcher, Client, ServerBusy, TimedAnswer
from vla.serve.codec import pack, unpack
from vla.serve.limits import RateLimiter, ServerLimits
from vla.serve.requests import ObservationBatch, ObservationParts, ObservationSpec

if TYPE_CHECKING:
    from websockets.asyncio.server import Server, ServerConnection
    from websockets.http11 import Request, Response

Act = Callable[[ObservationBatch], np.ndarray]
"""From B observations to actions float32 [B, H, A]."""
MAX_REPLY_CHARACTERS = 500
"""Characters of an error message."""
ACCEPT_BATCH = 4
"""Connections accepted in one turn of the event loop."""
ACCEPT_BACKLOG = 128
"""Connections that may wait in the kernel to be accepted."""
OPEN_SECONDS = 5.0
"""Longest handshake at the beginning of a connection."""
CLOSE_SECONDS = 2.0
"""Longest handshake at the end of a connection."""


@dataclass
class PolicyServer:
    """A policy (`act`) with the form of its observations, its spec, limits and access rules."""

    act: Act
    observation_spec: ObservationSpec
    policy_spec: Mapping[str, object]
    limits: ServerLimits
    access: AccessPolicy = field(default_factory=AccessPolicy)

    def __post_init__(self) -> None:
        from vla.serve.connections import Connections

        limits = self.limits
        self.connections = Connections(limits)
        self.stopping = asyncio.Event()
        self.batcher: Batcher[ObservationParts, np.ndarray] = Batcher(
            self._infer, limits.max_batch, limits.wait_seconds, limits.max_waiting
        )

    @property
    def num_clients(self) -> int:
        return len(self.connections.clients)

    def _infer(self, requests: Sequence[ObservationParts]) -> Sequence[np.ndarray | Exception]:
        actions = np.asarray(self.act(self.observation_spec.join(requests)), dtype=np.float32)
        return [row if np.isfinite(row).all() else non_finite_error(row) for row in actions]

    async def run(
        self, host: str, port: int, on_ready: Callable[[int], None] = lambda port: None
    ) -> bool:
        """Serve until cancelled, or until `stop` is called.

        `on_ready` is called with the port once the server listens; port 0 takes a free one.

        Returns:
            True where every request in flight at the end was answered.
        """
        from websockets.asyncio.server import serve

        from vla.serve.connections import WRITE_BYTES, Connection

        batches = asyncio.create_task(self.batcher.run())
        stop = asyncio.create_task(self.stopping.wait())
        try:
            connect = partial(Connection, connections=self.connections)
            async with serve(
                self._handle_connection,
                host,
                port,
                compression=None,
                max_size=self.limits.max_message_bytes,
                max_queue=1,
                write_limit=WRITE_BYTES,
                backlog=ACCEPT_BATCH,
                open_timeout=OPEN_SECONDS,
                close_timeout=CLOSE_SECONDS,
                process_request=self._answer_http,
                create_connection=connect,  # type: ignore[arg-type]
                ssl=self.access.tls,
            ) as server:
                set_accept_backlog(server)
                on_ready(bound_port(server))
                try:
                    await asyncio.wait({batches, stop}, return_when=asyncio.FIRST_COMPLETED)
                    if batches.done():
                        batches.result()  # raises its error: without batches no request is answered
                    return await self._drain()
                finally:
                    self.batcher.reject_pending()  # pending requests would keep connections open
        finally:
            stop.cancel()
            batches.cancel()
            with suppress(asyncio.CancelledError):
                await batches

    def stop(self) -> None:
        """Answer the requests in flight, refuse all others, and end `run`."""
        self.stopping.set()

    async def _drain(self) -> bool:
        end = time.monotonic() + self.limits.drain_seconds
        while self.connections.num_in_flight and time.monotonic() < end:
            await asyncio.sleep(0.01)
        return not self.connections.num_in_flight

    async def _handle_connection(self, connection: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed
        from websockets.frames import CloseCode

        client = self.connections.admit(connection)
        if isinstance(client, str):
            await connection.close(CloseCode.TRY_AGAIN_LATER, client)
            return
        with suppress(ConnectionClosed):
            await connection.send(pack(dict(self.policy_spec)))
            limiter = RateLimiter(self.limits.max_rate, burst=self.limits.max_rate)
            async for message in connection:
                with client.request_in_flight():
                    await connection.send(await self._reply(message, client))
                await asyncio.sleep(limiter.take())  # a faster client is read later

    async def _reply(self, message: str | bytes, client: Client | None = None) -> str | bytes:
        """Actions as bytes, or an error message as text."""
        client = client or Client()
        if self.stopping.is_set():
            return "this server is stopping: try again when it is back"
        try:
            if isinstance(message, str):
                raise ValueError("observations come as msgpack in binary messages, this was text")
            timed = await self.batcher.submit(self.observation_spec.read(unpack(message)), client)
        except (ValueError, ServerBusy) as error:
            reply = str(error)
        except Exception as error:
            # An error of the policy goes to this client; the server continues for the others.
            reply = f"the policy failed: {error.__class__.__name__}: {error}"
        else:
            client.has_been_answered = True
            return pack({"actions": timed.answer, **timing_fields(timed)})
        await self.batcher.wait_until_idle()
        cut = f"{reply[:MAX_REPLY_CHARACTERS]} ..."
        return reply if len(reply) <= MAX_REPLY_CHARACTERS else cut

    def _answer_http(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer /healthz and /status, and refuse clients without access; None admits a client."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            if self.stopping.is_set():
                return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "stopping\n")
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        refusal = self.access.refusal(request)
        if refusal is not None:
            code, reason = refusal
            response = connection.respond(code, f"{reason}\n")
            if code is http.HTTPStatus.UNAUTHORIZED:
                response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if path == "/status":
            status: dict[str, float] = {
                "clients": self.num_clients,
                "asking": self.connections.num_in_flight,
            }
            status |= self.batcher.statistics.to_dict()
            return connection.respond(http.HTTPStatus.OK, json.dumps(status) + "\n")
        if self.stopping.is_set():
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE, "this server is stopping\n"
            )
        return None


def non_finite_error(actions: np.ndarray) -> Exception:
    """The error in place of actions with NaN or infinity, which no robot may execute."""
    num_wrong = int((~np.isfinite(actions)).sum())
    return FloatingPointError(
        f"{num_wrong} of the {actions.size} numbers of its actions are NaN or infinite, for this "
        "observation; nothing is sent: look at the state that was sent and at the weights"
    )


def set_accept_backlog(server: Server) -> None:
    """Let the kernel queue more connections than one turn accepts; asyncio has one number for
    both."""
    for listening in server.sockets:
        with socket.socket(fileno=os.dup(listening.fileno())) as duplicate:
            duplicate.listen(ACCEPT_BACKLOG)


def bound_port(server: Server) -> int:
    return int(next(iter(server.sockets)).getsockname()[1])


def timing_fields(timed: TimedAnswer[np.ndarray]) -> dict[str, dict[str, float]]:
    """The times that openpi's clients read, and the size of the batch."""
    infer_ms = 1000 * timed.infer_seconds
    wait_ms = 1000 * timed.wait_seconds
    numbers = {"infer_ms": infer_ms, "wait_ms": wait_ms, "batch": timed.batch_size}
    return {"server_timing": numbers, "policy_timing": {"infer_ms": infer_ms}}
