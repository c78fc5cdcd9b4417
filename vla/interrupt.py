"""Ctrl-C and SIGTERM: a command ends in one line with exit code 130 or 143; within a run the first
signal saves."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = "\x1b[?25h"
"""A progress bar hides the cursor of a terminal."""


class Interrupted(Exception):
    """A run that was asked to stop and has saved. `number`: the signal, None where another process
    heard it."""

    def __init__(self, number: int | None = None):
        self.number = signal.SIGINT if number is None else number
        super().__init__(f"stopped by {signal.Signals(self.number).name}")

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended."""
        return 128 + self.number


@dataclass
class StopRequest:
    """Whether someone asked a loop to save and stop. `number`: the signal that did."""

    requested: bool = False
    number: int | None = None


@contextmanager
def handle_signals(handle: Callable[[int, FrameType | None], Any]) -> Iterator[dict[int, Any]]:
    """Within the block, SIGINT and SIGTERM are handled so; the block is given the handlers before
    it.

    Signals can only be caught in the main thread: in another one the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    before: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            before[number] = signal.signal(number, handle)
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Within the block, SIGINT and SIGTERM set `stop.requested`; a second one does what it would do
    outside.

    with stop_on_interrupt() as stop:
        for step in steps:
            ...
            if stop.requested:
                save()
                break
    """
    stop, outside = StopRequest(), dict.fromkeys(SIGNALS, signal.SIG_DFL)

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            signal.signal(number, outside[number])
            signal.raise_signal(number)
            return
        stop.requested, stop.number = True, number
        with suppress(RuntimeError):  # the signal may have come within a write to the same stream
            print(
                "\nstopping: the run is being saved (once more to stop at once)",
                file=sys.stderr,
                flush=True,
            )

    with handle_signals(handle) as before:
        outside |= before
        yield stop


@contextmanager
def exit_on_interrupt(remark: str = "") -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM end the process at once, in one line with `remark` in
    it."""

    def leave(number: int, frame: FrameType | None) -> None:
        line = f"\nstopped by {signal.Signals(number).name}{remark}\n"
        with suppress(OSError, RuntimeError):
            sys.stdout.write(SHOW_CURSOR if sys.stdout.isatty() else "")
            sys.stdout.flush()
        with suppress(OSError):
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
        os._exit(128 + number)

    with handle_signals(leave):
        yield
