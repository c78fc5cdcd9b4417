"""Progress bars of a run: steps, remaining time and a few metrics.

On a terminal the bars are rich's. Elsewhere (a file, CI) a plain line is printed every ten seconds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOBase
from typing import TYPE_CHECKING, Protocol, TextIO, runtime_checkable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 10.0
Stream = TextIO | TextIOBase


class Progress:
    """Progress output on a stream: bars on a terminal, lines elsewhere.

    `stream` None is stdout. `clock` returns seconds.
    """

    def __init__(self, stream: Stream | None = None, clock: Callable[[], float] = time.monotonic):
        self.stream: Stream = stream if stream is not None else sys.stdout
        self.clock = clock
        self.is_terminal = self.stream.isatty()

    @classmethod
    def silent(cls) -> Progress:
        """Progress without output."""
        return cls(open(os.devnull, "w"))

    def print_line(self, text: str) -> None:
        """Print a line."""
        print(text, file=self.stream, flush=True)

    @contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[ProgressBar]:
        """A bar of `total` steps, `done` of them before a resume; call `bar.advance(loss=...)`
        after each."""
        if self.is_terminal:
            with rich_bars(self.stream) as bars:
                task = bars.add_task(name, total=total, completed=done, numbers="")
                yield RichBar(bars, task, done)
        else:
            yield LineBar(name, total, done, self.print_line, self.clock)


@runtime_checkable
class ProgressBar(Protocol):
    """A bar of `Progress.bar`."""

    def advance(self, num_steps: int = 1, **numbers: float) -> None:
        """Add finished steps, with the metrics of the last one."""
        ...

    def advance_to(self, done: int, **numbers: float) -> None:
        """Set the number of finished steps; a smaller number than before changes nothing."""
        ...

    def set_total(self, total: int) -> None:
        """Set the expected number of steps, e.g. of a stage that ends by the clock."""
        ...


class RichBar:
    """A bar of rich; `done` steps come from earlier sessions."""

    def __init__(self, bars: RichProgress, task: TaskID, done: int = 0):
        self.bars = bars
        self.task = task
        self.done = done

    def advance(self, num_steps: int = 1, **numbers: float) -> None:
        self.done += num_steps
        self.bars.update(self.task, advance=num_steps, numbers=format_numbers(numbers))

    def advance_to(self, done: int, **numbers: float) -> None:
        if done > self.done:
            self.advance(done - self.done, **numbers)

    def set_total(self, total: int) -> None:
        self.bars.update(self.task, total=total)


class LineBar:
    """Lines for the first step, the last, and one every ten seconds between them."""

    def __init__(
        self,
        name: str,
        total: int,
        done: int,
        print_line: Callable[[str], None],
        clock: Callable[[], float],
    ):
        self.name = name
        self.total = total
        self.print_line = print_line
        self.clock = clock
        self.done = self.resumed_at = done
        self.started = clock()
        self.last_line = float("-inf")

    def advance(self, num_steps: int = 1, **numbers: float) -> None:
        self.done += num_steps
        now = self.clock()
        if self.done < self.total and now - self.last_line < SECONDS_BETWEEN_LINES:
            return
        self.last_line = now
        left = (now - self.started) / (self.done - self.resumed_at) * (self.total - self.done)
        took_or_left = (
            f"took {format_seconds(now - self.started)}"
            if left <= 0
            else f"{format_seconds(left)} left"
        )
        self.print_line(
            f"{self.name} {self.done}/{self.total}  {took_or_left}  "
            f"{format_numbers(numbers)}".rstrip()
        )

    def advance_to(self, done: int, **numbers: float) -> None:
        if done > self.done:
            self.advance(done - self.done, **numbers)

    def set_total(self, total: int) -> None:
        self.total = total


def rich_bars(stream: Stream) -> RichProgress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("[bold]{task.description:<12}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
        console=Console(file=stream),  # type: ignore[arg-type]
    )


def format_numbers(numbers: dict[str, float]) -> str:
    """`loss 0.213  success 0.5`: three significant digits, and no fraction from a thousand on."""
    texts = {
        name: f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        for name, value in numbers.items()
    }
    return "  ".join(f"{name.replace('_', ' ')} {text}" for name, text in texts.items())


def format_seconds(seconds: float) -> str:
    """`0:07`, `12:30` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
