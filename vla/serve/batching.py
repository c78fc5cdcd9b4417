"""Requests that arrive together are answered by one call of the policy."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")
REMEMBERED = 1000


class Busy(RuntimeError):
    """More requests wait than may."""


@dataclass(frozen=True)
class Timed(Generic[Answer]):
    """An answer, how long it waited for its batch, how long the batch took, and how many shared it (seconds)."""

    answer: Answer
    waited: float
    took: float
    batch: int


@dataclass
class Statistics:
    """What was served so far; `took` remembers the last batches' seconds."""

    requests: int = 0
    batches: int = 0
    refused: int = 0
    took: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def to_dict(self) -> dict[str, float]:
        ordered = sorted(self.took)
        return {
            "requests": self.requests,
            "batches": self.batches,
            "refused": self.refused,
            "mean_batch": self.requests / max(1, self.batches),
            "median_batch_ms": 1000 * ordered[len(ordered) // 2] if ordered else 0.0,
        }


class Batcher(Generic[Request, Answer]):
    """Collects requests for at most `wait_seconds`, or until there are `max_batch`, and answers them together.

    `infer` runs in a thread of its own, one batch at a time, so that connections are served meanwhile. While a batch is
    computed the next one fills.
    """

    def __init__(
        self,
        infer: Callable[[Sequence[Request]], Sequence[Answer]],
        max_batch: int,
        wait_seconds: float,
        max_waiting: int,
    ):
        self.infer, self.max_batch, self.wait_seconds, self.max_waiting = infer, max_batch, wait_seconds, max_waiting
        self.waiting: deque[tuple[Request, float, asyncio.Future[Timed[Answer]]]] = deque()
        self.arrived = asyncio.Event()
        self.statistics = Statistics()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="policy")

    async def ask(self, request: Request) -> Timed[Answer]:
        """The answer to one request. Raises Busy when too many wait already, and whatever `infer` raises."""
        if len(self.waiting) >= self.max_waiting:
            self.statistics.refused += 1
            raise Busy(f"{len(self.waiting)} requests wait already: ask again later, or serve with more --max-waiting")
        answer: asyncio.Future[Timed[Answer]] = asyncio.get_running_loop().create_future()
        self.waiting.append((request, time.perf_counter(), answer))
        self.arrived.set()
        return await answer

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            await self.arrived.wait()
            await self._fill()
            batch = [self.waiting.popleft() for _ in range(min(self.max_batch, len(self.waiting)))]
            if not self.waiting:
                self.arrived.clear()
            await self._answer(batch)

    async def _fill(self) -> None:
        """Wait for company, from the arrival of the first."""
        end = self.waiting[0][1] + self.wait_seconds
        while len(self.waiting) < self.max_batch and (left := end - time.perf_counter()) > 0:
            await asyncio.sleep(min(left, 0.001))

    async def _answer(self, batch: list[tuple[Request, float, asyncio.Future[Any]]]) -> None:
        begin = time.perf_counter()
        try:
            requests = [request for request, _, _ in batch]
            answers = await asyncio.get_running_loop().run_in_executor(self.thread, self.infer, requests)
        except Exception as error:
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        took = time.perf_counter() - begin
        self.statistics.requests += len(batch)
        self.statistics.batches += 1
        self.statistics.took.append(took)
        for (_, arrived, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(Timed(answer, begin - arrived, took, len(batch)))
