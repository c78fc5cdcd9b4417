"""Verifiers that misbehave on the completion "bad" and say 1 otherwise; they run in the verifiers'
process."""

import os
import signal
import subprocess
import sys
import time


def hangs(sample):
    while sample.completion == "bad":
        pass
    return 1.0


def sleeps_with_signals_blocked(sample):
    if sample.completion == "bad":
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
        time.sleep(1000)
    return 1.0


def eats_memory(sample):
    if sample.completion == "bad":
        return len(bytearray(2**33))
    return 1.0


def raises(sample):
    return 1 / (sample.completion != "bad")


def leaves(sample):
    if sample.completion == "bad":
        os._exit(0)
    return 1.0


def floods_and_hangs(sample):
    while sample.completion == "bad":
        os.write(1, b"x" * 2**20)
    return 1.0


def says_nonsense(sample):
    return "good" if sample.completion == "bad" else 1.0


def wants_a_key(sample):
    return sample.facts["unit"] if sample.completion == "bad" else 1.0


def says_infinity(sample):
    return float("inf") if sample.completion == "bad" else 1.0


class Untold(Exception):
    def __str__(self):
        raise ValueError("no words")


def raises_what_cannot_be_told(sample):
    if sample.completion == "bad":
        raise Untold
    return 1.0


def reads_requests(sample):
    return float(input() == "") if sample.completion == "bad" else 1.0


def starts_a_child_and_hangs(sample):
    if sample.completion == "bad":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        with open(sample.facts["file"], "w") as file:
            file.write(str(child.pid))
        time.sleep(1000)
    return 1.0


def prints(sample):
    print('{"score": 1.0}', flush=True)
    return 0.25


def always_hangs(sample):
    while True:
        pass


def gives_none(sample):
    return None


def gives_infinity(sample):
    return float("-inf") if sample.completion == "bad" else 1.0


def takes_two(prompt, completion):
    return 1.0


def cannot_tell(sample):
    return float("nan")
