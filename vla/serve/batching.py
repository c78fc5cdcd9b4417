"""Requests that arrive together are answered by one call of the policy."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")
REMEMBERED = 1000
SETTLE_SECONDS = 1.0


class ServerBusy(RuntimeError):
    """More requests wait than may."""


@dataclass(frozen=True)
class TimedAnswer(Generic[Answer]):
    """An answer, how long it waited for its batch, how long the batch took, and how many shared it
    (seconds)."""

    answer: Answer
    waited: float
    took: float
    batch: int


@dataclass
class Statistics:
    """What was served so far; `took` remembers the last batches' seconds."""

    requests: int = 0
    batches: int = 0
    failed: int = 0
    refused: int = 0
    took: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def to_dict(self) -> dict[str, float]:
        ordered = sorted(self.took)
        return {
            "requests": self.requests,
            "batches": self.batches,
            "failed": self.failed,
            "refused": self.refused,
            "mean_batch": self.requests / max(1, self.batches),
            "median_batch_ms": 1000 * ordered[len(ordered) // 2] if ordered else 0.0,
        }


@dataclass(eq=False)
class Client:
    """Who asks: from which address, whether it waits for an answer, has ever had one, and since
    when it is silent.

    A request of a client that has left is not answered. Requests of a suspect, whose last one
    failed, share no call with others'.
    """

    address: str = ""
    silent_since: float = 0.0
    is_asking: bool = False
    was_answered: bool = False
    is_suspect: bool = False
    has_left: bool = False

    @contextmanager
    def asking(self) -> Iterator[None]:
        """While it waits for an answer; from then on it is silent."""
        self.is_asking = True
        try:
            yield
        finally:
            self.is_asking, self.silent_since = False, time.monotonic()


@dataclass(frozen=True, eq=False)
class PendingRequest(Generic[Request, Answer]):
    """A request in the queue, since when, and where its answer goes."""

    request: Request
    client: Client
    arrived: float
    answer: asyncio.Future[TimedAnswer[Answer]]


class Batcher(Generic[Request, Answer]):
    """Collects requests for at most `wait_seconds`, or until there are `max_batch`, and answers
    them together.

    `infer` runs in a thread of its own, one batch at a time, so that connections are served
    meanwhile. While a batch is computed the next one fills. An answer that is an exception is
    raised for its own request. When `infer` itself fails, each request of the batch is tried alone,
    so that only the one at fault fails.
    """

    def __init__(
        self,
        infer: Callable[[Sequence[Request]], Sequence[Answer | Exception]],
        max_batch: int,
        wait_seconds: float,
        max_waiting: int,
    ):
        self.infer, self.max_batch, self.wait_seconds, self.max_waiting = (
            infer,
            max_batch,
            wait_seconds,
            max_waiting,
        )
        self.waiting: deque[PendingRequest[Request, Answer]] = deque()
        self.unanswered: set[asyncio.Future[TimedAnswer[Answer]]] = set()
        self.arrived = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.statistics = Statistics()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="policy")

    async def ask(self, request: Request, client: Client | None = None) -> TimedAnswer[Answer]:
        """The answer to one request. Raises Busy when too many wait already, and whatever `infer`
        raises for it."""
        if len(self.waiting) >= self.max_waiting:
            self._forget_those_who_left()
        if len(self.waiting) >= self.max_waiting:
            self.statistics.refused += 1
            raise ServerBusy(
                f"{len(self.waiting)} requests wait already: ask again later, or serve with more --max-waiting"
            )
        answer: asyncio.Future[TimedAnswer[Answer]] = asyncio.get_running_loop().create_future()
        self.waiting.append(
            PendingRequest(request, client or Client(), time.perf_counter(), answer)
        )
        self.unanswered.add(answer)
        self.arrived.set()
        try:
            return await answer
        finally:
            self.unanswered.discard(answer)

    async def settle(self) -> None:
        """Wait for the end of the batch that is being computed. Who was refused comes to the next
        turn like the others: reading messages in a closed loop would take the interpreter from the
        policy. That does not need seconds.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await self.idle.wait()

    def give_up(self) -> None:
        """Answer no more: whoever still waits hears so."""
        for answer in self.unanswered:
            settle_answer(answer, ServerBusy("the server stopped before it could answer"))
        self.waiting.clear()
        self.arrived.clear()
        self.idle.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            await self.arrived.wait()
            await self._fill()
            batch = self._next_batch()
            if not self.waiting:
                self.arrived.clear()
            self.idle.clear()
            if batch:
                await self._answer(batch)
            self.idle.set()

    async def _fill(self) -> None:
        """Wait for company, from the arrival of the first."""
        end = self.waiting[0].arrived + self.wait_seconds
        while len(self.waiting) < self.max_batch and (left := end - time.perf_counter()) > 0:
            await asyncio.sleep(min(left, 0.001))

    def _next_batch(self) -> list[PendingRequest[Request, Answer]]:
        """The requests that have waited longest: a suspect's alone, others' together."""
        self._forget_those_who_left()
        if not self.waiting:
            return []
        if self.waiting[0].client.is_suspect:
            return [self.waiting.popleft()]
        batch = [one for one in self.waiting if not one.client.is_suspect][: self.max_batch]
        self.waiting = deque(one for one in self.waiting if one not in batch)
        return batch

    def _forget_those_who_left(self) -> None:
        for one in self.waiting:
            if one.client.has_left:
                settle_answer(one.answer, ServerBusy("the client has left"))
        self.waiting = deque(one for one in self.waiting if not one.client.has_left)

    async def _answer(self, batch: list[PendingRequest[Request, Answer]]) -> None:
        begin = time.perf_counter()
        requests = [one.request for one in batch]
        try:
            answers = list(
                await asyncio.get_running_loop().run_in_executor(self.thread, self.infer, requests)
            )
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers to {len(batch)} requests")
        except Exception as error:
            await self._blame(batch, error)
            return
        took = time.perf_counter() - begin
        self.statistics.requests += len(batch)
        self.statistics.batches += 1
        self.statistics.took.append(took)
        for one, answer in zip(batch, answers, strict=True):
            one.client.is_suspect = False
            if isinstance(answer, Exception):
                self.statistics.failed += 1
                settle_answer(one.answer, answer)
            else:
                settle_answer(
                    one.answer, TimedAnswer(answer, begin - one.arrived, took, len(batch))
                )

    async def _blame(self, batch: list[PendingRequest[Request, Answer]], error: Exception) -> None:
        """Find whose request made the batch fail, and answer the others."""
        if len(batch) > 1:
            for one in batch:
                await self._answer([one])
            return
        self.statistics.failed += 1
        batch[0].client.is_suspect = True
        settle_answer(batch[0].answer, error)


def settle_answer(
    answer: asyncio.Future[TimedAnswer[Answer]], found: TimedAnswer[Answer] | Exception
) -> None:
    """Settle an answer that is still awaited."""
    if answer.done():
        return
    if isinstance(found, Exception):
        answer.set_exception(found)
    else:
        answer.set_result(found)
