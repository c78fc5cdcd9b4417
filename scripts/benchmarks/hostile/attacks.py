"""Attacks on a policy server by messages, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from ctypes import c_longlong

from benchmarks.hostile import floods
from benchmarks.hostile.messages import LARGEST, draw_broken_message
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from vla.serve.client import RemotePolicy

SPAWN = multiprocessing.get_context("spawn")


def send_broken(port: int, count: int, seed: int) -> Counter[str]:
    """Send broken messages, each after the answer to the last; counts of the kinds of answers."""
    draw = random.Random(seed)
    answers = Counter[str]()
    while answers.total() < count:
        with closing(RemotePolicy(f"ws://127.0.0.1:{port}")) as policy:
            try:
                while answers.total() < count:
                    policy.connection.send(draw_broken_message(draw))
                    answer = policy.connection.recv(timeout=60)
                    is_text = isinstance(answer, str)
                    answers["answered in words" if is_text else "answered with actions"] += 1
            except ConnectionClosed:
                answers["ended by closing"] += 1
    return answers


def messages(port: int, done: c_longlong) -> None:
    """Send broken messages, each after the answer to the last."""
    while True:
        send_broken(port, 20, seed=done.value)
        done.value += 20


def pipelined(port: int, done: c_longlong) -> None:
    """Send broken messages without waiting for answers."""
    frames = [
        Frame(Opcode.BINARY, draw_broken_message(random.Random(i))).serialize(mask=True)
        for i in range(300)
    ]
    floods.send_frames(port, frames, done)


def large(port: int, done: c_longlong) -> None:
    """Send the largest messages that the server reads, with the most expensive entries."""
    floods.send_frames(port, [Frame(Opcode.BINARY, LARGEST).serialize(mask=True)], done)


ATTACKS: dict[str, Callable[[int, c_longlong], None]] = {
    "messages": messages,
    "pipelined": pipelined,
    "large": large,
    "pings": floods.pings,
    "fragments": floods.fragments,
    "connections": floods.connections,
    "half_handshakes": floods.half_handshakes,
    "idle": floods.idle,
}


@contextmanager
def attacking(port: int, name: str) -> Iterator[c_longlong]:
    """Run an attack within the block, from its first success; yields the number of its actions."""
    done = SPAWN.Value("q", 0, lock=False)
    attacker = SPAWN.Process(target=ATTACKS[name], args=(port, done), daemon=True)
    attacker.start()
    try:
        while attacker.is_alive() and not done.value:
            time.sleep(0.05)
        yield done
    finally:
        attacker.kill()
        attacker.join()
