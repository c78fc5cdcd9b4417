"""What an attacker does, in a process of its own until it is ended."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from benchmarks.hostile import floods
from benchmarks.hostile.messages import LARGEST, draw_broken_message
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from vla.serve.client import RemotePolicy

SPAWN = multiprocessing.get_context("spawn")


def send_broken(port: int, count: int, seed: int) -> Counter[str]:
    """So many broken messages, each after the answer to the last; how they were answered."""
    draw, answers = random.Random(seed), Counter[str]()
    while answers.total() < count:
        with closing(RemotePolicy(f"ws://127.0.0.1:{port}")) as policy:
            try:
                while answers.total() < count:
                    policy.connection.send(draw_broken_message(draw))
                    answer = policy.connection.recv(timeout=60)
                    answers[
                        "answered in words" if isinstance(answer, str) else "answered with actions"
                    ] += 1
            except ConnectionClosed:
                answers["ended by closing"] += 1
    return answers


def messages(port: int, done: Any) -> None:
    """Broken messages, each after the answer to the one before."""
    while True:
        send_broken(port, 20, seed=done.value)
        done.value += 20


def pipelined(port: int, done: Any) -> None:
    """Broken messages without waiting for an answer."""
    frames = [
        Frame(Opcode.BINARY, draw_broken_message(random.Random(i))).serialize(mask=True)
        for i in range(300)
    ]
    floods.send_frames(port, frames, done)


def large(port: int, done: Any) -> None:
    """The largest messages that are read, of the entries that cost most."""
    floods.send_frames(port, [Frame(Opcode.BINARY, LARGEST).serialize(mask=True)], done)


ATTACKS: dict[str, Callable[[int, Any], None]] = {
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
def attacking(port: int, name: str) -> Iterator[Any]:
    """Within the block an attack goes on, from its first success; the block is given the number of
    things done."""
    done = SPAWN.Value("q", 0, lock=False)
    (attacker := SPAWN.Process(target=ATTACKS[name], args=(port, done), daemon=True)).start()
    try:
        while attacker.is_alive() and not done.value:
            time.sleep(0.05)
        yield done
    finally:
        attacker.kill()
        attacker.join()
