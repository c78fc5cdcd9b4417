"""What a person sees while a run goes on: a bar with the time that is left and the few numbers that
matter.

On a terminal the bars are rich's; elsewhere (a file, CI) a plain line is printed now and then.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOBase
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows the stages of a run. `stream` decides: bars on a terminal, lines elsewhere. `clock`
    returns seconds."""

    def __init__(
        self, stream: TextIOBase | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self.stream = stream if stream is not None else sys.stdout
        self.clock = clock
        self.is_terminal = self.stream.isatty()

    @classmethod
    def silent(cls) -> Progress:
        """One that nobody sees."""
        return cls(open(os.devnull, "w"))  # type: ignore[arg-type]

    def print_line(self, text: str) -> None:
        """Print a line of its own."""
        print(text, file=self.stream, flush=True)

    @contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[ProgressBar]:
        """A stage of `total` steps, `done` of them before a resume; call `stage.advance(loss=...)`
        after each."""
        if self.is_terminal:
            with rich_bars(self.stream) as bars:
                task = bars.add_task(name, total=total, completed=done, numbers="")
                yield RichBar(bars, task, done)
        else:
            yield LineBar(name, total, done, self.print_line, self.clock)


@runtime_checkable
class ProgressBar(Protocol):
    """A stage under way."""

    def advance(self, num_steps: int = 1, **numbers: float) -> None:
        """Note that steps were made, with the numbers of the last one."""
        ...

    def advance_to(self, done: int, **numbers: float) -> None:
        """Note how many steps of the stage are done; fewer than before change nothing."""
        ...

    def set_total(self, total: int) -> None:
        """How many steps it will come to, where that is only known on the way: a stage that ends by
        the clock."""
        ...


class RichBar:
    """A rich bar; `done` steps were made before a resume."""

    def __init__(self, bars: RichProgress, task: TaskID, done: int = 0):
        self.bars, self.task, self.done = bars, task, done

    def advance(self, num_steps: int = 1, **numbers: float) -> None:
        self.done += num_steps
        self.bars.update(self.task, advance=num_steps, numbers=format_numbers(numbers))

    def advance_to(self, done: int, **numbers: float) -> None:
        if done > self.done:
            self.advance(done - self.done, **numbers)

    def set_total(self, total: int) -> None:
        self.bars.update(self.task, total=total)


class LineBar:
    """Prints the first step, the last, and between them one line every ten seconds."""

    def __init__(
        self,
        name: str,
        total: int,
        done: int,
        print_line: Callable[[str], None],
        clock: Callable[[], float],
    ):
        self.name, self.total, self.print_line, self.clock = name, total, print_line, clock
        self.done = self.resumed_at = done
        self.started, self.last_line = clock(), float("-inf")

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
            f"{self.name} {self.done}/{self.total}  {took_or_left}  {format_numbers(numbers)}".rstrip()
        )

    def advance_to(self, done: int, **numbers: float) -> None:
        if done > self.done:
            self.advance(done - self.done, **numbers)

    def set_total(self, total: int) -> None:
        self.total = total


def rich_bars(stream: TextIOBase) -> RichProgress:
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
        console=Console(file=stream),
    )


def format_numbers(numbers: dict[str, float]) -> str:
    """`loss 0.213  success 0.5`: three significant digits, and no fraction from a thousand on."""
    shown = {
        name: f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        for name, value in numbers.items()
    }
    return "  ".join(f"{name.replace('_', ' ')} {text}" for name, text in shown.items())


def format_seconds(seconds: float) -> str:
    """`0:07`, `12:30` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
