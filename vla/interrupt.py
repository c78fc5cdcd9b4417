"""Handling of SIGINT (Ctrl-C) and SIGTERM: save and stop within a run, else exit with one line.

The exit code of a command is 130 or 143.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | None
"""A signal handler of Python, `signal.SIG_DFL` or `signal.SIG_IGN`; None: set outside Python."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = "\x1b[?25h"
"""Terminal code that restores the cursor hidden by a progress bar."""


class Interrupted(Exception):
    """End of a saved run after a stop request.

    `number` is the signal's number; None where another process received it.
    """

    def __init__(self, number: int | None = None):
        self.number = signal.SIGINT if number is None else number
        super().__init__(f"stopped by {signal.Signals(self.number).name}")

    @property
    def exit_code(self) -> int:
        """Exit code of a process that a signal ended, by the convention of shells."""
        return 128 + self.number


@dataclass
class StopRequest:
    """A request to save and stop. `number` is the signal's number."""

    requested: bool = False
    number: int | None = None


@contextmanager
def handle_signals(
    handle: Callable[[int, FrameType | None], object],
) -> Iterator[dict[int, Handler]]:
    """Handle SIGINT and SIGTERM by `handle` within the block; yields the previous handlers.

    Python delivers signals to the main thread only. In another thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    before: dict[int, Handler] = {}
    try:
        for number in SIGNALS:
            before[number] = signal.signal(number, handle)
        yield before
    finally:
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)


@contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Set `stop.requested` on SIGINT or SIGTERM within the block. A second signal has its usual
    effect.

    with stop_on_interrupt() as stop:
        for step in steps:
            ...
            if stop.requested:
                save()
                break
    """
    stop = StopRequest()
    outside: dict[int, Handler] = dict.fromkeys(SIGNALS, signal.SIG_DFL)

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            signal.signal(number, outside[number])
            signal.raise_signal(number)
            return
        stop.requested = True
        stop.number = number
        with suppress(RuntimeError):  # the signal may interrupt a write to the same stream
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
    """End the process on SIGINT or SIGTERM within the block, with one line that holds `remark`."""

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
