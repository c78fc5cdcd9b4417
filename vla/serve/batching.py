"""Dynamic batching: one call of the policy answers the requests that arrive together."""

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
NUM_BATCH_TIMES = 1000
"""Latest batches whose seconds the statistics keep."""
MAX_IDLE_WAIT_SECONDS = 1.0


class ServerBusy(RuntimeError):
    """The queue of requests is full."""


@dataclass(frozen=True)
class TimedAnswer(Generic[Answer]):
    """An answer with the seconds that its request waited, and the seconds and size of its batch."""

    answer: Answer
    wait_seconds: float
    infer_seconds: float
    batch_size: int


@dataclass
class Statistics:
    """Counts of requests so far, and the seconds of the latest batches."""

    requests: int = 0
    batches: int = 0
    failed: int = 0
    refused: int = 0
    batch_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_BATCH_TIMES))

    def to_dict(self) -> dict[str, float]:
        ordered = sorted(self.batch_seconds)
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
    """A connected client and the state of its requests.

    `idle_since` is the monotonic time since which it has sent no request. A client that has left is
    not answered. A suspect is a client whose last request failed: its requests share no batch with
    those of others.
    """

    address: str = ""
    idle_since: float = 0.0
    is_in_flight: bool = False
    has_been_answered: bool = False
    is_suspect: bool = False
    has_left: bool = False

    @contextmanager
    def request_in_flight(self) -> Iterator[None]:
        """Mark a request as in flight within the block; the client is idle from its end on."""
        self.is_in_flight = True
        try:
            yield
        finally:
            self.is_in_flight = False
            self.idle_since = time.monotonic()


@dataclass(frozen=True, eq=False)
class PendingRequest(Generic[Request, Answer]):
    """A request in the queue, the time of its arrival, and the future that takes its answer."""

    request: Request
    client: Client
    arrived: float
    answer: asyncio.Future[TimedAnswer[Answer]]


class Batcher(Generic[Request, Answer]):
    """Collects requests for at most `wait_seconds`, or until there are `max_batch`, as one batch.

    `infer` runs in a thread of its own, one batch at a time, so the event loop stays free. While a
    batch is computed the next one fills. An answer that is an exception is raised for its own
    request. When `infer` itself fails, each request of the batch is tried alone, so that only the
    one at fault fails.
    """

    def __init__(
        self,
        infer: Callable[[Sequence[Request]], Sequence[Answer | Exception]],
        max_batch: int,
        wait_seconds: float,
        max_waiting: int,
    ):
        self.infer = infer
        self.max_batch = max_batch
        self.wait_seconds = wait_seconds
        self.max_waiting = max_waiting
        self.waiting: deque[PendingRequest[Request, Answer]] = deque()
        self.unanswered: set[asyncio.Future[TimedAnswer[Answer]]] = set()
        self.arrived = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.statistics = Statistics()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="policy")

    async def submit(self, request: Request, client: Client | None = None) -> TimedAnswer[Answer]:
        """Queue a request and wait for its answer.

        Raises:
            ServerBusy: `max_waiting` requests wait already, or the server stops.
            Exception: `infer` raised it for this request.
        """
        if len(self.waiting) >= self.max_waiting:
            self._drop_departed()
        if len(self.waiting) >= self.max_waiting:
            self.statistics.refused += 1
            raise ServerBusy(
                f"{len(self.waiting)} requests wait already: ask again later, "
                "or serve with more --max-waiting"
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

    async def wait_until_idle(self) -> None:
        """Wait for the end of the batch that is being computed, for at most a second.

        A refused client waits like the others. Reading its messages in a closed loop would take the
        interpreter from the policy.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_IDLE_WAIT_SECONDS):
                await self.idle.wait()

    def reject_pending(self) -> None:
        """Refuse every request that still waits."""
        for answer in self.unanswered:
            resolve_answer(answer, ServerBusy("the server stopped before it could answer"))
        self.waiting.clear()
        self.arrived.clear()
        self.idle.set()

    async def run(self) -> None:
        """Answer batches until cancelled."""
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
        """Wait for the batch to fill, for at most `wait_seconds` from the first arrival."""
        end = self.waiting[0].arrived + self.wait_seconds
        while len(self.waiting) < self.max_batch and (left := end - time.perf_counter()) > 0:
            await asyncio.sleep(min(left, 0.001))

    def _next_batch(self) -> list[PendingRequest[Request, Answer]]:
        """Take the oldest requests; a request of a suspect makes a batch alone."""
        self._drop_departed()
        if not self.waiting:
            return []
        if self.waiting[0].client.is_suspect:
            return [self.waiting.popleft()]
        trusted = [pending for pending in self.waiting if not pending.client.is_suspect]
        batch = trusted[: self.max_batch]
        self.waiting = deque(pending for pending in self.waiting if pending not in batch)
        return batch

    def _drop_departed(self) -> None:
        for pending in self.waiting:
            if pending.client.has_left:
                resolve_answer(pending.answer, ServerBusy("the client has left"))
        self.waiting = deque(pending for pending in self.waiting if not pending.client.has_left)

    async def _answer(self, batch: list[PendingRequest[Request, Answer]]) -> None:
        begin = time.perf_counter()
        requests = [pending.request for pending in batch]
        try:
            answers = list(
                await asyncio.get_running_loop().run_in_executor(self.thread, self.infer, requests)
            )
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers to {len(batch)} requests")
        except Exception as error:
            await self._isolate_failure(batch, error)
            return
        infer_seconds = time.perf_counter() - begin
        self.statistics.requests += len(batch)
        self.statistics.batches += 1
        self.statistics.batch_seconds.append(infer_seconds)
        for pending, answer in zip(batch, answers, strict=True):
            pending.client.is_suspect = False
            if isinstance(answer, Exception):
                self.statistics.failed += 1
                resolve_answer(pending.answer, answer)
                continue
            timed = TimedAnswer(answer, begin - pending.arrived, infer_seconds, len(batch))
            resolve_answer(pending.answer, timed)

    async def _isolate_failure(
        self, batch: list[PendingRequest[Request, Answer]], error: Exception
    ) -> None:
        """Run the requests of a failed batch one by one; a single one takes the error."""
        if len(batch) > 1:
            for pending in batch:
                await self._answer([pending])
            return
        self.statistics.failed += 1
        batch[0].client.is_suspect = True
        resolve_answer(batch[0].answer, error)


def resolve_answer(
    answer: asyncio.Future[TimedAnswer[Answer]], result: TimedAnswer[Answer] | Exception
) -> None:
    """Set the result of an answer, unless it is done or cancelled."""
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)
