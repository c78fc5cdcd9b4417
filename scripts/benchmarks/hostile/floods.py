"""Floods below the level of messages: sockets, handshakes and control frames. Each runs until its
process is killed."""

from __future__ import annotations

import socket
import time
from collections import deque
from contextlib import suppress
from ctypes import c_longlong

from websockets.frames import Frame, Opcode

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def open_socket(port: int, message: bytes = HANDSHAKE) -> socket.socket:
    """Open a connection and send the first bytes."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(message)
    return connection


def discard_input(connection: socket.socket) -> None:
    """Read and drop the bytes that have arrived."""
    with suppress(BlockingIOError):
        while connection.recv(65536, socket.MSG_DONTWAIT):
            pass


def send_frames(port: int, frames: list[bytes], done: c_longlong) -> None:
    """Send frames without waiting for answers, on one connection at a time."""
    while True:
        with suppress(OSError), open_socket(port) as connection:
            while True:
                for frame in frames:
                    connection.sendall(frame)
                    discard_input(connection)
                    done.value += 1


def pings(port: int, done: c_longlong) -> None:
    """Send pings, each of which needs an answer."""
    send_frames(port, [Frame(Opcode.PING, b"x" * 125).serialize(mask=True)], done)


def fragments(port: int, done: c_longlong) -> None:
    """Send a message of empty fragments that never ends."""
    send_frames(port, [Frame(Opcode.CONT, b"", fin=False).serialize(mask=True)], done)


def connections(port: int, done: c_longlong) -> None:
    """Open connections and close them at once."""
    while True:
        with suppress(OSError):
            open_socket(port).close()
            done.value += 1


def half_handshakes(port: int, done: c_longlong) -> None:
    """Begin handshakes that never end (slow loris)."""
    hold_sockets(port, b"GET / HTTP/1.1\r\nHo", 0.002, done)


def idle(port: int, done: c_longlong) -> None:
    """Open clients that never send a request."""
    hold_sockets(port, HANDSHAKE, 0.01, done)


def hold_sockets(port: int, message: bytes, pause: float, done: c_longlong) -> None:
    """Open sockets one after the other, and keep the last 300 open."""
    sockets: deque[socket.socket] = deque()
    while True:
        with suppress(OSError):
            sockets.append(open_socket(port, message))
            done.value += 1
        if len(sockets) > 300:
            sockets.popleft().close()
        time.sleep(pause)
