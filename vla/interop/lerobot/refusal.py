"""Errors of our policies within LeRobot's commands, in one line in place of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class RefusedInput(ValueError):
    """A wrong dataset, setting or batch; the message names it and the remedy."""


@contextmanager
def refuse_value_errors() -> Iterator[None]:
    """Convert every ValueError of the block to `RefusedInput`."""
    try:
        yield
    except RefusedInput:
        raise
    except ValueError as error:
        raise RefusedInput(str(error)) from error


def install_one_line_refusals() -> None:
    """Have the interpreter end on `RefusedInput` with its message alone; every other error is shown
    as before."""
    shown_before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, RefusedInput):
            print(f"error: {error}", file=sys.stderr)
        else:
            shown_before(kind, error, trace)

    sys.excepthook = show
