"""What many processes have to agree on: whether to stop, whether one of them failed, what only the
main one knows.

A loop that ends in one process and goes on in another waits for ever, so nothing that a process
alone can know (a signal, a clock, a file, an error) may decide how it goes on. In a single process
nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch

from vla.interrupt import StopRequest
from vla.training.distributed import Processes


class OtherProcessFailed(ValueError):
    """Another process met an error in work that each does for itself; its message is that
    error's."""


@runtime_checkable
class StopFlag(Protocol):
    """Whether someone asked a loop to save and stop."""

    @property
    def requested(self) -> bool: ...

    @property
    def number(self) -> int | None:
        """The signal that did, where it is known."""
        ...


class SharedStop:
    """Requested as soon as it was in any process; every process has to ask equally often."""

    def __init__(self, own: StopRequest, processes: Processes):
        self.own, self.processes = own, processes
        self._agreed = False

    @property
    def requested(self) -> bool:
        if not self._agreed:
            self._agreed = (
                float(self.processes.reduce_sum(torch.tensor(float(self.own.requested)))) > 0
            )
        return self._agreed

    @property
    def number(self) -> int | None:
        return self.own.number


def share_stop(stop: StopRequest, processes: Processes) -> StopFlag:
    """The stop flag that all processes see alike."""
    return stop if processes.num_processes == 1 else SharedStop(stop, processes)


def broadcast_from_main(value: Any, processes: Processes) -> Any:
    """What the main process says, in every process."""
    return processes.gather(value if processes.is_main else None)[0]


def main_process_seconds(seconds: float, processes: Processes) -> float:
    """The main process's clock, the only one that counts."""
    if processes.num_processes == 1:
        return seconds
    return float(
        processes.reduce_sum(
            torch.tensor(seconds if processes.is_main else 0.0, dtype=torch.float64)
        )
    )


@contextmanager
def propagate_errors(processes: Processes) -> Iterator[None]:
    """Work that every process, or the main one, does by itself: an error in one of them ends all of
    them.

    Within the block no process may wait for another. Raises the process's own error, or
    OtherProcessFailed.
    """
    if processes.num_processes == 1:
        yield
        return
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    found = processes.gather(None if own is None else str(own) or type(own).__name__)
    if own is not None:
        raise own
    for rank, message in enumerate(found):
        if message is not None:
            raise OtherProcessFailed(f"process {rank} of {len(found)}: {message}")
