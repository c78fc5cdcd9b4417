"""The client of a policy server, and a player of action chunks that requests the next one early."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from vla.command_names import command_name
from vla.serve.codec import pack, unpack

Infer = Callable[[Mapping[str, object]], np.ndarray]
"""From an observation to a chunk of actions [H, A]."""


class RemotePolicy:
    """A connection to a policy server of ours or of openpi's.

    `policy_spec` is the metadata that the server sends first. `timing` holds the server's times of
    the last answer.

    Raises:
        ValueError: No server answers at the address, or it refuses this client or its `token`.
    """

    def __init__(self, address: str, patience_seconds: float = 60.0, token: str | None = None):
        from websockets.sync.client import connect

        self.patience_seconds = patience_seconds
        self._open = ExitStack()
        try:
            connected = connect(
                address,
                compression=None,
                max_size=None,
                open_timeout=patience_seconds,
                additional_headers={} if token is None else {"Authorization": f"Bearer {token}"},
            )
        except InvalidStatus as refused:
            reason = refused.response.body.decode(errors="replace").strip()
            raise ValueError(
                f"{address} refuses ({refused.response.status_code}): {reason}"
            ) from None
        except (OSError, InvalidURI, InvalidHandshake) as error:
            raise ValueError(
                f"no policy is served at {address} ({error}): "
                f"start {command_name('vla-serve')}, or give its ws://HOST:PORT"
            ) from None
        self.connection = self._open.enter_context(connected)
        self.timing: dict[str, float] = {}
        try:
            self.policy_spec: dict[str, Any] = self._receive()
        except BaseException:
            self.close()
            raise

    def _receive(self) -> dict[str, Any]:
        try:
            answer = self.connection.recv(timeout=self.patience_seconds)
        except ConnectionClosed as closed:
            reason = closed.rcvd.reason if closed.rcvd else ""
            raise ValueError(
                f"the policy server ended the connection: {reason or 'without a reason'}"
            ) from None
        if isinstance(answer, str):
            raise ValueError(f"the policy server refuses: {answer}")
        message = unpack(answer)
        if not isinstance(message, dict):
            raise ValueError(
                f"the policy server sent a {type(message).__name__} in place of a mapping: "
                "is it one of ours?"
            )
        return message

    def infer(self, observation: Mapping[str, object]) -> np.ndarray:
        """Request actions float32 [H, A], all finite.

        Raises:
            ValueError: The server refuses (with its reason), or sends no finite actions.
        """
        # The last message of a server that closed is still to be read.
        with suppress(ConnectionError, ConnectionClosed):
            self.connection.send(pack(dict(observation)))
        answer = self._receive()
        self.timing = answer.get("server_timing") or {}
        actions = np.asarray(answer.get("actions"))
        if actions.ndim != 2 or not actions.size or actions.dtype.kind not in "iuf":
            raise ValueError(
                f"the policy server sent {actions.dtype} {actions.shape} in place of actions [H, A]"
            )
        if not np.isfinite(actions).all():
            raise ValueError(
                "the policy server sent actions that are NaN or infinite: "
                "the robot must not execute them"
            )
        return actions

    def check(self, action_spec: Mapping[str, object]) -> None:
        """Compare the server's action space with the one here.

        Raises:
            ValueError: A field differs (the message names it), or the server has no action_spec.
        """
        served = self.policy_spec.get("action_spec")
        if served is None:
            raise ValueError("the policy server has no action_spec, so its actions are unknown")
        for name, value in action_spec.items():
            if to_lists(served.get(name)) != to_lists(value):
                raise ValueError(
                    f"action_spec.{name} is {served.get(name)} on the server, {value} here"
                )

    def close(self) -> None:
        self._open.close()


def to_lists(value: object) -> object:
    """Turn tuples into lists, inside too: msgpack has no tuples."""
    return [to_lists(item) for item in value] if isinstance(value, list | tuple) else value


class ChunkPlayer:
    """Plays chunks of actions one control step at a time.

    With `ahead` 0 the robot waits for each chunk. Above 0 the next chunk is requested when `ahead`
    actions remain, which are executed while it is computed.

    A new chunk belongs to an observation some control steps in the past. Its actions for those
    steps are skipped. With `real_time_chunking` the request carries the actions being executed and
    the expected delay (that of the last answer), and the policy continues from them.

    `num_waits` counts the steps for which no action was ready in time. `seams` holds, for each new
    chunk, the absolute difference of its first action from the old chunk's at the same step [A].

    Raises:
        ValueError: `ahead` is negative.
    """

    def __init__(self, infer: Infer, ahead: int, real_time_chunking: bool = False):
        if ahead < 0:
            raise ValueError(f"ahead ({ahead}) counts control steps: 0 waits for every chunk")
        self.infer = infer
        self.ahead = ahead
        self.real_time_chunking = real_time_chunking
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="next-chunk")
        self.remaining: list[np.ndarray] = []
        self.pending: Future[np.ndarray] | None = None
        self.steps_since_request = 0
        self.expected_delay = ahead
        self.num_waits = 0
        self.num_chunks = 0
        self.seams: list[np.ndarray] = []

    def next(self, observation: Mapping[str, object]) -> np.ndarray:
        """The action [A] of this control step."""
        self._switch_chunk(wait=False)
        if not self.remaining:
            if self.pending is None:
                self._request(observation)
            else:
                self.num_waits += 1
            self._switch_chunk(wait=True)
        action = self.remaining.pop(0)
        if self.ahead and self.pending is None and len(self.remaining) <= self.ahead:
            self._request(observation, [action, *self.remaining])
        if self.pending is not None:
            self.steps_since_request += 1
        return action

    def _request(
        self, observation: Mapping[str, object], executing: list[np.ndarray] | None = None
    ) -> None:
        if self.real_time_chunking and executing:
            plan = np.stack(executing).astype(np.float32)
            delay = min(self.expected_delay, len(executing))
            observation = {**observation, "going": {"plan": plan, "late": delay}}
        self.pending = self.thread.submit(self.infer, observation)
        self.steps_since_request = 0
        self.num_chunks += 1

    def _switch_chunk(self, wait: bool) -> None:
        """Switch to the requested chunk once it has arrived, or wait for it."""
        if self.pending is None or not (wait or self.pending.done()):
            return
        chunk = self.pending.result()
        # At least one action remains, however late the chunk is.
        num_past = min(self.steps_since_request, len(chunk) - 1)
        if self.remaining:
            self.seams.append(np.abs(chunk[num_past] - self.remaining[0]))
        if self.steps_since_request:
            self.expected_delay = self.steps_since_request
        self.remaining = list(chunk[num_past:])
        self.pending = None

    def reset(self) -> None:
        """Drop the current chunk and any request: another episode begins."""
        if self.pending is not None:
            self.pending.result()
        self.remaining = []
        self.pending = None
        self.steps_since_request = 0
