"""Synchronization of processes: shared stop requests, shared errors, values of the main process.

A loop that ends in one process and continues in another waits forever. A signal, a clock, a file or
an error may reach one process only, so none of them may decide alone how a loop continues. In a
single process these functions do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast, runtime_checkable

import torch

from vla.interrupt import StopRequest
from vla.training.distributed import Processes


class OtherProcessFailed(ValueError):
    """An error of another process, with that error's message."""


@runtime_checkable
class StopFlag(Protocol):
    """A request to save and stop."""

    @property
    def requested(self) -> bool:
        """True once a stop is requested."""
        ...

    @property
    def number(self) -> int | None:
        """Number of the signal that made the request; None where it is unknown."""
        ...


class SharedStop:
    """A stop flag that is set in all processes once it is set in one.

    Reading `requested` is a collective operation: every process must read it equally often.
    """

    def __init__(self, own: StopRequest, processes: Processes):
        self.own = own
        self.processes = processes
        self._agreed = False

    @property
    def requested(self) -> bool:
        if not self._agreed:
            num_requests = self.processes.reduce_sum(torch.tensor(float(self.own.requested)))
            self._agreed = float(num_requests) > 0
        return self._agreed

    @property
    def number(self) -> int | None:
        return self.own.number


def share_stop(stop: StopRequest, processes: Processes) -> StopFlag:
    """A stop flag with the same value in all processes."""
    return stop if processes.num_processes == 1 else SharedStop(stop, processes)


def broadcast_from_main[T](value: T, processes: Processes) -> T:
    """The main process's value, in every process. The other processes' values are ignored."""
    return compute_on_main(lambda: value, processes)


def compute_on_main[T](make: Callable[[], T], processes: Processes) -> T:
    """The result of `make()`, called in the main process only, in every process."""
    return cast(T, processes.gather(make() if processes.is_main else None)[0])


def main_process_seconds(seconds: float, processes: Processes) -> float:
    """The main process's time in seconds, in every process."""
    if processes.num_processes == 1:
        return seconds
    own = torch.tensor(seconds if processes.is_main else 0.0, dtype=torch.float64)
    return float(processes.reduce_sum(own))


@contextmanager
def propagate_errors(processes: Processes) -> Iterator[None]:
    """Raise an error in every process when the block fails in one of them.

    Within the block no process may wait for another.

    Raises:
        Exception: the process's own error.
        OtherProcessFailed: where only another process failed.
    """
    if processes.num_processes == 1:
        yield
        return
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    messages = processes.gather(None if own is None else str(own) or type(own).__name__)
    if own is not None:
        raise own
    for rank, message in enumerate(messages):
        if message is not None:
            raise OtherProcessFailed(f"process {rank} of {len(messages)}: {message}")
