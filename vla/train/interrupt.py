"""Ctrl-C that saves: the first asks the loop to stop at a good place, the second stops at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Whether someone asked a loop to save and stop."""

    requested: bool = False


@contextmanager
def stop_on_interrupt() -> Iterator[Stop]:
    """Within the block, SIGINT and SIGTERM set `stop.requested`; a second one raises KeyboardInterrupt.

    with stop_on_interrupt() as stop:
        for step in steps:
            ...
            if stop.requested:
                save()
                break

    Signals can only be caught in the main thread: in another one the block runs as it is.
    """
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        print("\nstopping: the run is being saved (once more to stop at once)", file=sys.stderr, flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
