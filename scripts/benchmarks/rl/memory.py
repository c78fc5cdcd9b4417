"""Peak resident memory of one call, measured by the operating system."""

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path


def peak_in_child(call: Callable[[], object]) -> int:
    """`peak_growth` of a call in a fork of this process.

    Measure before the call has run here: a fork inherits memory that an earlier call has freed.
    """
    forking = multiprocessing.get_context("fork")
    receiver, sender = forking.Pipe(duplex=False)
    child = forking.Process(target=lambda: sender.send(peak_growth(call)))
    with warnings.catch_warnings():
        # It warns of forking with threads; none of ours runs yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    sender.close()
    peak: int = receiver.recv()
    child.join()
    return peak


def peak_growth(call: Callable[[], object]) -> int:
    """Bytes by which one call raises the resident memory of this process, sampled every
    millisecond."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    ended = threading.Event()
    before = resident()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.001):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    ended.set()
    watcher.join()
    return max(peak, resident()) - before
