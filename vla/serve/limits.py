"""Limits of a policy server: clients, requests, rates, sizes and times."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerLimits:
    """The limits of a server, in all and per client.

    `max_batch` requests share a call, for which the first waits at most `wait_seconds`. A client
    has one request in flight, and sends at most `max_rate` requests a second. A client that was
    idle for `idle_seconds`, or was never answered, is evicted when a newcomer finds no room. After
    `stop`, requests in flight are answered for `drain_seconds`.

    Raises:
        ValueError: A count is below 1, or a rate or time is negative or infinite.
    """

    max_clients: int
    max_batch: int
    max_waiting: int
    max_message_bytes: int
    wait_seconds: float
    max_per_address: int = 32
    max_rate: float = 1000.0
    idle_seconds: float = 60.0
    drain_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("max_clients", "max_batch", "max_waiting", "max_per_address"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} ({getattr(self, name)}) must be at least 1"
                )
        if not 0 < self.max_rate < math.inf:
            raise ValueError(f"--max-rate ({self.max_rate}) must be above 0 and finite")
        for name, flag in (
            ("wait_seconds", "--wait-ms"),
            ("idle_seconds", "--idle-seconds"),
            ("drain_seconds", "--drain-seconds"),
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{flag} must be finite and not negative")


class RateLimiter:
    """At most `rate` events a second, of which `burst` may come at once."""

    def __init__(self, rate: float, burst: float):
        self.rate = rate
        self.burst = burst
        self.next = time.monotonic() - burst / rate

    def take(self) -> float:
        """Count one more event; the seconds by which it is too early."""
        now = time.monotonic()
        self.next = max(self.next, now - self.burst / self.rate) + 1.0 / self.rate
        return max(0.0, self.next - now)
