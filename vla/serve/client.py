"""A client of a served policy, and a way to keep moving while the next chunk of actions is
computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from vla.command_names import command_name
from vla.serve.codec import pack, unpack

Infer = Callable[[Mapping[str, Any]], np.ndarray]
"""Asks for a chunk of actions [H, A]."""


class RemotePolicy:
    """A connection to a policy server of ours or of openpi's. `policy_spec` is what the server says of
    its policy.

    `token` is what the server asks for. Raises ValueError when nothing is served at the address, or
    the server does not let this client in.
    """

    def __init__(self, address: str, patience_seconds: float = 60.0, token: str | None = None):
        from websockets.sync.client import connect

        self.patience_seconds = patience_seconds
        self._open = ExitStack()
        try:
            asked = connect(
                address,
                compression=None,
                max_size=None,
                open_timeout=patience_seconds,
                additional_headers={} if token is None else {"Authorization": f"Bearer {token}"},
            )
        except InvalidStatus as refused:
            said = refused.response.body.decode(errors="replace").strip()
            raise ValueError(
                f"{address} refuses ({refused.response.status_code}): {said}"
            ) from None
        except (OSError, InvalidURI, InvalidHandshake) as error:
            raise ValueError(
                f"no policy is served at {address} ({error}): start {command_name('vla-serve')}, or give its ws://HOST:PORT"
            ) from None
        self.connection = self._open.enter_context(asked)
        self.timing: dict[str, float] = {}
        try:
            self.policy_spec: dict[str, Any] = self._receive()
        except BaseException:
            self.close()
            raise

    def _receive(self) -> Any:
        try:
            answer = self.connection.recv(timeout=self.patience_seconds)
        except ConnectionClosed as closed:
            why = closed.rcvd.reason if closed.rcvd else "without a word"
            raise ValueError(
                f"the policy server ended the connection: {why or 'without a word'}"
            ) from None
        if isinstance(answer, str):
            raise ValueError(f"the policy server says: {answer}")
        found = unpack(answer)
        if not isinstance(found, dict):
            raise ValueError(
                f"the policy server sent a {type(found).__name__} in place of a mapping: is it one of ours?"
            )
        return found

    def infer(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Actions float32 [H, A], all finite. Raises ValueError with the server's words where it
        refuses."""
        with suppress(ConnectionError, ConnectionClosed):  # what it said last is still to be read
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
                "the policy server sent actions that are NaN or infinite: the robot must not execute them"
            )
        return actions

    def check(self, action_spec: Mapping[str, Any]) -> None:
        """Refuse a policy whose actions mean something else; ValueError names the field."""
        theirs = self.policy_spec.get("action_spec")
        if theirs is None:
            raise ValueError(
                "the policy server does not say what its actions mean: it has no action_spec"
            )
        for name, value in action_spec.items():
            if to_lists(theirs.get(name)) != to_lists(value):
                raise ValueError(
                    f"action_spec.{name} is {theirs.get(name)} on the server, {value} here"
                )

    def close(self) -> None:
        self._open.close()


def to_lists(value: Any) -> Any:
    return [to_lists(item) for item in value] if isinstance(value, list | tuple) else value


class ChunkPlayer:
    """One action at a time from chunks. With `ahead` 0 the robot waits for each chunk; above it the
    next chunk is asked for when `ahead` actions are left, and those go on being executed while it
    is computed.

    The new chunk was thought from an observation that is some control steps old when it arrives;
    its first so many actions lie in the past and are skipped. With `continuing` the policy is told
    what is being executed and how late its answer will be, as late as the last one was, so that the
    new chunk goes on from there (real-time chunking). `waited` counts the steps for which no action
    was ready in time; `seams` holds by how much a new chunk's first action differed from the old
    chunk's for the same moment [A].
    """

    def __init__(self, infer: Infer, ahead: int, continuing: bool = False):
        if ahead < 0:
            raise ValueError(f"ahead ({ahead}) counts control steps: 0 waits for every chunk")
        self.infer, self.ahead, self.continuing = infer, ahead, continuing
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="next-chunk")
        self.left: list[np.ndarray] = []
        self.coming: Future[np.ndarray] | None = None
        self.steps_since, self.waited, self.num_chunks, self.late = 0, 0, 0, ahead
        self.seams: list[np.ndarray] = []

    def next(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The action [A] of this control step."""
        self._take_over(wait=False)
        if not self.left:
            if self.coming is None:
                self._ask(observation)
            else:
                self.waited += 1
            self._take_over(wait=True)
        action = self.left.pop(0)
        if self.ahead and self.coming is None and len(self.left) <= self.ahead:
            self._ask(observation, [action, *self.left])
        if self.coming is not None:
            self.steps_since += 1
        return action

    def _ask(self, observation: Mapping[str, Any], doing: list[np.ndarray] | None = None) -> None:
        if self.continuing and doing:
            going = {"plan": np.stack(doing).astype(np.float32), "late": min(self.late, len(doing))}
            observation = {**observation, "going": going}
        self.coming, self.steps_since = self.thread.submit(self.infer, observation), 0
        self.num_chunks += 1

    def _take_over(self, wait: bool) -> None:
        """Go over to the chunk that was asked for, if it is there."""
        if self.coming is None or not (wait or self.coming.done()):
            return
        chunk = self.coming.result()
        # At least one action is left to execute, however late the chunk is.
        past = min(self.steps_since, len(chunk) - 1)
        if self.left:
            self.seams.append(np.abs(chunk[past] - self.left[0]))
        if self.steps_since:
            self.late = self.steps_since
        self.left, self.coming = list(chunk[past:]), None

    def reset(self) -> None:
        """Forget everything: another episode begins."""
        if self.coming is not None:
            self.coming.result()
        self.left, self.coming, self.steps_since = [], None, 0
