"""Serves a policy over a websocket, in the protocol of openpi's clients (`openpi_client.WebsocketClientPolicy`).

A client connects and is sent the policy's passport; then every message it sends is an observation, answered by
{"actions": float32 [H, A], "server_timing": {...}}. A request that cannot be answered gets a text that says why, and
the connection stays. `GET /healthz` answers OK, `GET /status` what was served so far.
"""

from __future__ import annotations

import asyncio
import http
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.serve.batching import Batcher, Busy, Timed
from vla.serve.codec import pack, unpack
from vla.serve.requests import BadRequest, Expected, Parts, Shown

if TYPE_CHECKING:
    from websockets.asyncio.server import Server, ServerConnection
    from websockets.http11 import Request, Response

Act = Callable[[Shown], np.ndarray]
"""Decides for every row: actions float32 [B, H, A]."""
TRY_AGAIN_LATER = 1013
"""The close code of a server that has no room (RFC 6455's registry)."""


@dataclass(frozen=True)
class Limits:
    """How many clients, requests a batch and requests in waiting; bytes of a message; seconds a batch waits for
    company.
    """

    max_clients: int
    max_batch: int
    max_waiting: int
    max_message_bytes: int
    wait_seconds: float


@dataclass
class PolicyServer:
    """A policy (`act`), what it expects, its passport, and how much it may be asked."""

    act: Act
    expected: Expected
    passport: Mapping[str, Any]
    limits: Limits
    num_clients: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        limits = self.limits
        self.batcher: Batcher[Parts, np.ndarray] = Batcher(
            self._infer, limits.max_batch, limits.wait_seconds, limits.max_waiting
        )

    def _infer(self, requests: Sequence[Parts]) -> Sequence[np.ndarray]:
        return list(np.asarray(self.act(self.expected.join(requests)), dtype=np.float32))

    async def run(self, host: str, port: int, on_ready: Callable[[int], None] = lambda port: None) -> None:
        """Serve until cancelled; `on_ready` hears the port (0 takes a free one)."""
        from websockets.asyncio.server import serve

        batches = asyncio.create_task(self.batcher.run())
        try:
            async with serve(
                self._talk, host, port, compression=None, max_size=self.limits.max_message_bytes,
                process_request=self._plain_http,
            ) as server:  # fmt: skip
                on_ready(port_of(server))
                await server.serve_forever()
        finally:
            batches.cancel()
            with suppress(asyncio.CancelledError):
                await batches

    async def _talk(self, client: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        if self.num_clients >= self.limits.max_clients:
            await client.close(TRY_AGAIN_LATER, f"{self.num_clients} clients are served already")
            return
        self.num_clients += 1
        try:
            await client.send(pack(dict(self.passport)))
            async for message in client:
                await client.send(await self._reply(message))
        except ConnectionClosed:
            pass
        finally:
            self.num_clients -= 1

    async def _reply(self, message: str | bytes) -> str | bytes:
        """Actions as bytes, or what is wrong as text."""
        if isinstance(message, str):
            return "observations come as msgpack in binary messages, this was text"
        try:
            timed = await self.batcher.ask(self.expected.read(unpack(message)))
        except (BadRequest, Busy, ValueError) as error:
            return str(error)
        except Exception as error:  # the policy's own: this client hears it, the others are served on
            return f"the policy failed: {error.__class__.__name__}: {error}"
        return pack({"actions": timed.answer, **timing(timed)})

    def _plain_http(self, connection: ServerConnection, request: Request) -> Response | None:
        """Health for load balancers, and numbers for people."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if request.path == "/status":
            found = {"clients": self.num_clients, **self.batcher.statistics.to_dict()}
            return connection.respond(http.HTTPStatus.OK, json.dumps(found) + "\n")
        return None


def port_of(server: Server) -> int:
    return next(iter(server.sockets)).getsockname()[1]


def timing(timed: Timed[np.ndarray]) -> dict[str, Any]:
    """What openpi's clients read, and how many shared the call."""
    numbers = {"infer_ms": 1000 * timed.took, "wait_ms": 1000 * timed.waited, "batch": timed.batch}
    return {"server_timing": numbers, "policy_timing": {"infer_ms": 1000 * timed.took}}
