"""Serves a policy over a websocket, in the protocol of openpi's clients
(`openpi_client.WebsocketClientPolicy`).

A client connects and is sent its policy spec; then every message it sends is an observation,
answered by {"actions": float32 [H, A], "server_timing": {...}}. A request that cannot be answered
gets a text that says why, and the connection stays. `GET /healthz` answers OK, `GET /status` what
was served so far. What one client sends is checked before it meets another's: `docs/reference/security.md`
says what is promised.
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
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.serve.access import AccessPolicy
from vla.serve.batching import Batcher, Client, ServerBusy, TimedAnswer
from vla.serve.codec import pack, unpack
from vla.serve.limits import RateLimiter, ServerLimits
from vla.serve.requests import ExpectedObservation, ObservationBatch, Parts

if TYPE_CHECKING:
    from websockets.asyncio.server import Server, ServerConnection
    from websockets.http11 import Request, Response

Act = Callable[[ObservationBatch], np.ndarray]
"""Decides for every row: actions float32 [B, H, A]."""
MAX_TEXT = 500
"""Characters of an answer in words, however long what it complains of."""
ACCEPTED_A_TURN, QUEUED = 4, 128
"""Connections that are accepted before what others sent is looked at, and those that wait in the
kernel meanwhile."""
OPEN_SECONDS, CLOSE_SECONDS = 5.0, 2.0
"""How long the handshakes at the beginning and the end of a connection may take."""


@dataclass
class PolicyServer:
    """A policy (`act`), what it expects, its policy spec, how much it may be asked, and by whom."""

    act: Act
    expected: ExpectedObservation
    policy_spec: Mapping[str, Any]
    limits: ServerLimits
    access: AccessPolicy = field(default_factory=AccessPolicy)

    def __post_init__(self) -> None:
        from vla.serve.connections import Connections

        limits = self.limits
        self.connections = Connections(limits)
        self.stopping = asyncio.Event()
        self.batcher: Batcher[Parts, np.ndarray] = Batcher(
            self._infer, limits.max_batch, limits.wait_seconds, limits.max_waiting
        )

    @property
    def num_clients(self) -> int:
        return len(self.connections.clients)

    def _infer(self, requests: Sequence[Parts]) -> Sequence[np.ndarray | Exception]:
        actions = np.asarray(self.act(self.expected.join(requests)), dtype=np.float32)
        return [row if np.isfinite(row).all() else not_finite_answer(row) for row in actions]

    async def run(
        self, host: str, port: int, on_ready: Callable[[int], None] = lambda port: None
    ) -> bool:
        """Serve until cancelled or told to `stop`; `on_ready` hears the port (0 takes a free one).
        Whether all that was in flight was answered.
        """
        from websockets.asyncio.server import serve

        from vla.serve.connections import WRITE_BYTES, Connection

        batches = asyncio.create_task(self.batcher.run())
        told = asyncio.create_task(self.stopping.wait())
        try:
            async with serve(
                self._talk,
                host,
                port,
                compression=None,
                max_size=self.limits.max_message_bytes,
                max_queue=1,
                write_limit=WRITE_BYTES,
                backlog=ACCEPTED_A_TURN,
                open_timeout=OPEN_SECONDS,
                close_timeout=CLOSE_SECONDS,
                process_request=self._answer_http,
                create_connection=partial(Connection, connections=self.connections),
                ssl=self.access.tls,
            ) as server:
                queue_connections(server)
                on_ready(bound_port(server))
                try:
                    await asyncio.wait({batches, told}, return_when=asyncio.FIRST_COMPLETED)
                    if batches.done():
                        batches.result()  # raises what ended it: without it nobody is answered
                    return await self._drain()
                finally:
                    self.batcher.give_up()  # who still waits would keep the connections open
        finally:
            told.cancel()
            batches.cancel()
            with suppress(asyncio.CancelledError):
                await batches

    def stop(self) -> None:
        """Answer what is in flight, refuse everything else, and end `run`."""
        self.stopping.set()

    async def _drain(self) -> bool:
        end = time.monotonic() + self.limits.drain_seconds
        while self.connections.num_asking and time.monotonic() < end:
            await asyncio.sleep(0.01)
        return not self.connections.num_asking

    async def _talk(self, connection: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed
        from websockets.frames import CloseCode

        client = self.connections.admit(connection)
        if isinstance(client, str):
            await connection.close(CloseCode.TRY_AGAIN_LATER, client)
            return
        with suppress(ConnectionClosed):
            await connection.send(pack(dict(self.policy_spec)))
            pace = RateLimiter(self.limits.max_rate, burst=self.limits.max_rate)
            async for message in connection:
                with client.asking():
                    await connection.send(await self._reply(message, client))
                await asyncio.sleep(pace.take())  # who sends faster is read later

    async def _reply(self, message: str | bytes, client: Client | None = None) -> str | bytes:
        """Actions as bytes, or what is wrong as text."""
        client = client or Client()
        if self.stopping.is_set():
            return "this server is stopping: ask it again when it is back"
        try:
            if isinstance(message, str):
                raise ValueError("observations come as msgpack in binary messages, this was text")
            timed = await self.batcher.ask(self.expected.read(unpack(message)), client)
        except (ValueError, ServerBusy) as error:
            answer = str(error)
        except (
            Exception
        ) as error:  # the policy's own: this client hears it, the others are served on
            answer = f"the policy failed: {error.__class__.__name__}: {error}"
        else:
            client.was_answered = True
            return pack({"actions": timed.answer, **timing_fields(timed)})
        await self.batcher.settle()
        return answer if len(answer) <= MAX_TEXT else f"{answer[:MAX_TEXT]} ..."

    def _answer_http(self, connection: ServerConnection, request: Request) -> Response | None:
        """Health for load balancers, numbers for people; a client is let in or told why not."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            if self.stopping.is_set():
                return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "stopping\n")
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        refusal = self.access.refusal(request)
        if refusal is not None:
            status, reason = refusal
            response = connection.respond(status, f"{reason}\n")
            if status is http.HTTPStatus.UNAUTHORIZED:
                response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if path == "/status":
            found = {"clients": self.num_clients, "asking": self.connections.num_asking}
            found |= self.batcher.statistics.to_dict()
            return connection.respond(http.HTTPStatus.OK, json.dumps(found) + "\n")
        if self.stopping.is_set():
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE, "this server is stopping\n"
            )
        return None


def not_finite_answer(actions: np.ndarray) -> Exception:
    """What is answered in place of actions that no robot may be sent."""
    wrong = int((~np.isfinite(actions)).sum())
    return FloatingPointError(
        f"{wrong} of the {actions.size} numbers of its actions are NaN or infinite, for this observation; nothing is "
        "sent: look at the state that was sent and at the weights"
    )


def queue_connections(server: Server) -> None:
    """Let the kernel queue more connections than are accepted at a time: asyncio knows one number
    for both."""
    for listening in server.sockets:
        with socket.socket(fileno=os.dup(listening.fileno())) as same:
            same.listen(QUEUED)


def bound_port(server: Server) -> int:
    return next(iter(server.sockets)).getsockname()[1]


def timing_fields(timed: TimedAnswer[np.ndarray]) -> dict[str, Any]:
    """What openpi's clients read, and how many shared the call."""
    numbers = {"infer_ms": 1000 * timed.took, "wait_ms": 1000 * timed.waited, "batch": timed.batch}
    return {"server_timing": numbers, "policy_timing": {"infer_ms": 1000 * timed.took}}
