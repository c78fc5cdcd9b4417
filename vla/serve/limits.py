"""How much may be asked of a policy server, in all and by one client."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerLimits:
    """Clients, requests a batch and requests in waiting; bytes of a message; seconds that a batch
    waits for company.

    Of the clients, at most `max_per_address` may come from one address. A connection asks one thing
    at a time, at most `max_rate` times a second. One that has been silent for `idle_seconds`, or
    has never been answered, gives way when a newcomer finds no room. Requests in flight are
    answered for `drain_seconds` after the server was told to stop.
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
        self.rate, self.burst = rate, burst
        self.next = time.monotonic() - burst / rate

    def take(self) -> float:
        """One more event; by how many seconds it is too early."""
        now = time.monotonic()
        self.next = max(self.next, now - self.burst / self.rate) + 1.0 / self.rate
        return max(0.0, self.next - now)
