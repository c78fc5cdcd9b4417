"""What is printed, where the time goes, and how a run is asked to stop: with a clock made by
hand."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from vla.training.progress import Progress, format_numbers, format_seconds
from vla.training.timing import Timer, peak_memory_bytes


class Clock:
    """A clock that a test turns."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_first_last_and_every_ten_seconds():
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, clock).bar("sft", total=8) as stage:
        for step in range(8):
            clock.now += 4.0
            stage.advance(loss=1 / (step + 1), success_rate=0.5)
    # Steps end at 4, 8, ... 32 s; a line at 4 s, the next when 10 s have passed (16 s), then 28 s,
    # and the last. At 4 s one of eight steps is made: 28 s are left; at 16 s four: 16 s; at 28 s
    # seven: 4 s.
    assert stream.getvalue().splitlines() == [
        "sft 1/8  0:28 left  loss 1  success rate 0.5",
        "sft 4/8  0:16 left  loss 0.25  success rate 0.5",
        "sft 7/8  0:04 left  loss 0.143  success rate 0.5",
        "sft 8/8  took 0:32  loss 0.125  success rate 0.5",
    ]


def test_a_resumed_stage_estimates_from_its_own_steps():
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, clock).bar("rl", total=10, done=8) as stage:
        clock.now += 3.0
        stage.advance()
    assert stream.getvalue() == "rl 9/10  0:03 left\n"


def test_a_stage_that_ends_by_the_clock_says_what_it_will_come_to():
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, clock).bar("rl", total=300) as stage:
        for _ in range(2):
            clock.now += 20.0
            stage.set_total(4)  # at 20 s a step, 80 s are enough for four
            stage.advance()
    assert stream.getvalue().splitlines() == ["rl 1/4  1:00 left", "rl 2/4  0:40 left"]


def test_bars_are_drawn_on_a_terminal():
    stream = io.StringIO()
    stream.isatty = lambda: True
    with Progress(stream).bar("rl", total=300) as stage:
        stage.set_total(2)
        stage.advance(success=0.75)
        stage.advance(success=0.875)
    assert "rl" in stream.getvalue()
    assert "2/2" in stream.getvalue()
    assert "success 0.875" in stream.getvalue()


def test_numbers_and_times_are_short():
    assert (
        format_numbers({"loss": 0.123456, "tokens_per_second": 12345.6})
        == "loss 0.123  tokens per second 12346"
    )
    assert [format_seconds(s) for s in (7, 750, 3723)] == ["0:07", "12:30", "1:02:03"]


def test_timers_nest_and_sum_to_the_wall_clock():
    clock = Clock()
    timer = Timer(clock)
    clock.now += 1.0
    for _ in range(2):
        with timer("rollout"):
            clock.now += 2.0
            with timer("render"):
                clock.now += 3.0
    with timer("update"):
        clock.now += 4.0
    assert timer.seconds() == {
        "total": 15.0,
        "rollout": 10.0,
        "rollout/render": 6.0,
        "rollout/other": 4.0,
        "update": 4.0,
        "other": 1.0,
    }


def test_a_timer_counts_what_an_error_ends():
    clock = Clock()
    timer = Timer(clock)
    with contextlib.suppress(KeyError), timer("a"):
        clock.now += 2.0
        raise KeyError
    with timer("b"):
        clock.now += 1.0
    assert timer.seconds() == {"total": 3.0, "a": 2.0, "b": 1.0, "other": 0.0}


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the kernel's own number is read from /proc"
)
def test_peak_memory_is_what_the_kernel_says():
    status = Path("/proc/self/status").read_text()
    kibibytes = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    assert peak_memory_bytes() == pytest.approx(kibibytes * 1024, rel=0.05)
