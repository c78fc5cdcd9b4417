"""Memory of one call, as the operating system sees it."""

import multiprocessing
import os
import threading
import warnings
from pathlib import Path


def peak_in_child(call) -> int:
    """`peak_growth` of a call in a fork of this process. Ask before the call has run here: memory
    that it freed would be there already.
    """
    forking = multiprocessing.get_context("fork")
    receiver, sender = forking.Pipe(duplex=False)
    child = forking.Process(target=lambda: sender.send(peak_growth(call)))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of forking with threads: none of ours runs yet
        child.start()
    sender.close()
    peak = receiver.recv()
    child.join()
    return peak


def peak_growth(call) -> int:
    """Bytes by which one call raises the resident memory of this process, watched every
    millisecond."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    over, before = threading.Event(), resident()
    peak = before

    def watch():
        nonlocal peak
        while not over.wait(0.001):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    over.set()
    watcher.join()
    return max(peak, resident()) - before
