"""Signals: a command ends in one line at any moment, and a run is asked first."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vla.cli import command
from vla.interrupt import Interrupted, stop_on_interrupt


@pytest.fixture
def python_handles_sigint():
    """A shell starts background jobs with SIGINT ignored, and Python leaves that as it is."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_sigint")
def test_the_first_interrupt_asks_and_the_second_stops(capsys: pytest.CaptureFixture):
    handler = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert "the run is being saved" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def work() -> None:
        with stop_on_interrupt() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    handler = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join()
    assert seen == [(False, handler)]


SCRIPT = """
import os, signal, time
from vla.cli import command
from vla.interrupt import Interrupted, stop_on_interrupt

def end_in(where):
    number = signal.{name}
    if where == "loading":
        os.kill(os.getpid(), number)
        time.sleep(60)
    with stop_on_interrupt() as stop:
        os.kill(os.getpid(), number)
        if where == "at once":
            os.kill(os.getpid(), number)
            time.sleep(60)
        raise Interrupted(stop.number)

@command("; all is kept")
def main(arguments=None):
    end_in("{where}")
    return 0

raise SystemExit(main())
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("where", ["loading", "run", "at once"])
def test_a_command_ends_without_a_traceback_and_with_the_code_of_its_signal(name, code, where):
    script = SCRIPT.format(name=name, where=where)
    root = Path(__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == code
    asked = ["stopping: the run is being saved (once more to stop at once)"] * (where != "loading")
    left = [f"stopped by {name}; all is kept"] * (where != "run")
    assert [line for line in ended.stderr.splitlines() if line] == asked + left


def test_a_command_that_was_stopped_says_so_by_its_code():
    def main(arguments):
        raise Interrupted(signal.SIGTERM)

    assert command()(main)() == 143
    assert Interrupted().exit_code == 130


FAULTS = {
    "of a setting": (ValueError("sim.task: no such task"), "error: sim.task: no such task\n"),
    "of numbers": (
        FloatingPointError("the policy refuses to act"),
        "error: the policy refuses to act\n",
    ),
    "of the system": (
        OSError(errno.EROFS, "Read-only file system", "runs/x"),
        "error: runs/x: read-only file system; choose a folder on a disk that can be written\n",
    ),
    "with a secret": (OSError("https://u:key@host is away"), "error: https://***@host is away\n"),
    "without a path": (OSError(errno.EPIPE, "Broken pipe"), "error: [Errno 32] Broken pipe\n"),
}


@pytest.mark.parametrize(("fault", "line"), FAULTS.values(), ids=FAULTS)
def test_what_a_command_cannot_do_is_one_line_and_code_2(fault, line, capsys):
    def main(arguments):
        raise fault

    with pytest.raises(SystemExit) as ended:
        command()(main)()
    assert ended.value.code == 2
    assert capsys.readouterr().err == line
