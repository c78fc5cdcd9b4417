"""What one client sends does not fail, read or lock out another, and does not fill the server."""

import os
import socket
import threading
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from tests.serve.small_server import EXPECTED, STATE, Named, observation, served
from vla.serve.client import RemotePolicy
from vla.serve.codec import pack
from vla.serve.connections import MAX_UNADMITTED, SMALL_FRAMES, client_address
from vla.serve.requests import ObservationSpec
from vla.serve.server import MAX_REPLY_CHARACTERS


def together(policies, observations) -> list:
    """What clients hear that ask at the same moment: actions or the error."""
    found = [None] * len(policies)

    def ask(i: int) -> None:
        try:
            found[i] = policies[i].infer(observations[i])
        except ValueError as error:
            found[i] = error

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(policies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_bad_request_in_a_batch_fails_alone_and_is_not_told_to_others():
    calls = []

    def act(shown):
        calls.append(len(shown.instruction))
        return Named()(shown)

    with served(act, wait_seconds=0.3) as at:
        policies = [RemotePolicy(at.address) for _ in range(3)]
        asked = [observation(1.0), observation(prompt="fail"), observation(2.0)]
        first, second, third = together(policies, asked)
        assert (first[0, 0], third[0, 0]) == (1.0, 2.0)
        assert "the weights are gone" in str(second)
        assert max(calls) == 3  # they did share a call
        for policy in policies:
            policy.close()


def test_actions_that_are_not_finite_become_words_for_that_client_only():
    def act(shown):
        actions = Named()(shown)
        actions[shown.proprio[:, 0] == 7, 2:4] = np.nan
        return actions

    with served(act, wait_seconds=0.3) as at:
        policies = [RemotePolicy(at.address) for _ in range(2)]
        first, second = together(policies, [observation(7.0), observation(2.0)])
        assert "4 of the 10 numbers of its actions are NaN or infinite" in str(first)
        assert second[0, 0] == 2.0
        for policy in policies:
            policy.close()


def test_a_client_trusts_no_server_with_numbers_that_are_not_finite(monkeypatch):
    with served(Named()) as at:
        monkeypatch.setattr(at.server, "_infer", None)
        monkeypatch.setattr(at.server.batcher, "infer", lambda requests: [np.full((5, 2), np.inf)])
        policy = RemotePolicy(at.address)
        with pytest.raises(ValueError, match="the robot must not execute them"):
            policy.infer(observation())
        policy.close()


def test_answers_in_words_are_short():
    def encode(text):
        raise ValueError(text * 1000)

    expected = ObservationSpec(("front",), 4, STATE, encode=encode)
    with served(Named(), expected=expected) as at:
        policy = RemotePolicy(at.address)
        policy.connection.send(pack(observation(prompt="long " * 100)))
        assert len(policy.connection.recv(timeout=10)) < MAX_REPLY_CHARACTERS + 10
        policy.close()


def test_idle_connections_give_way_and_busy_ones_stay():
    with served(Named(), max_clients=4, max_per_address=4) as at:
        busy = RemotePolicy(at.address)
        busy.infer(observation())
        idle = [RemotePolicy(at.address) for _ in range(3)]
        time.sleep(0.15)  # what a newcomer has to ask for something
        newcomer = RemotePolicy(at.address)
        assert newcomer.infer(observation(3.0))[0, 0] == 3.0
        assert busy.infer(observation(1.0))[0, 0] == 1.0
        with pytest.raises(ValueError, match="idle, and another client needed the place"):
            idle[0].infer(observation())
        assert idle[2].infer(observation(2.0))[0, 0] == 2.0
        for policy in (busy, newcomer, *idle):
            policy.close()


def test_a_newcomer_finds_room_beside_64_idle_connections():
    with served(Named(), max_clients=64, max_per_address=32) as at:
        idle = [RemotePolicy(at.address) for _ in range(64)]
        newcomer = RemotePolicy(at.address)
        assert newcomer.infer(observation(3.0))[0, 0] == 3.0
        for policy in (newcomer, *idle):
            policy.close()


def test_one_address_takes_no_more_than_its_share():
    with served(Named(), max_clients=8, max_per_address=2) as at:
        policies = [RemotePolicy(at.address) for _ in range(2)]
        for policy in policies:
            policy.infer(observation())
        with pytest.raises(ValueError, match="2 clients of this address are served already"):
            RemotePolicy(at.address)
        for policy in policies:
            policy.close()
    assert client_address(("127.0.0.1", 5)) == client_address(("::ffff:127.0.0.1", 5, 0, 0))
    assert client_address(("2001:db8::1", 5, 0, 0)) == client_address(("2001:db8::2", 5, 0, 0))
    assert client_address(("2001:db8:0:1::1", 5, 0, 0)) != client_address(("2001:db8::1", 5, 0, 0))
    assert client_address(None) == "unknown"


def test_handshakes_that_never_end_take_no_place():
    with served(Named()) as at:
        files = len(os.listdir("/proc/self/fd"))
        half = [socket.create_connection(("127.0.0.1", at.port)) for _ in range(3 * MAX_UNADMITTED)]
        for one in half:
            one.sendall(b"GET / HTTP/1.1\r\nHo")
        policy = RemotePolicy(at.address)
        assert policy.infer(observation(1.0))[0, 0] == 1.0
        # Both ends live in this process: the clients' own, and what the server keeps of them.
        assert len(os.listdir("/proc/self/fd")) - files <= len(half) + MAX_UNADMITTED + 10
        for one in half:
            one.close()
        policy.close()


def send_for_ever(stranger: socket.socket, data: bytes) -> None:
    for _ in range(2000):  # 250 MB of replies that nobody reads
        stranger.sendall(data)


def test_who_never_reads_is_dropped():
    ping = Frame(Opcode.PING, b"x" * 125).serialize(mask=True) * 1000
    with served(Named()) as at:
        policy = RemotePolicy(at.address)
        stranger = socket.create_connection(("127.0.0.1", at.port))
        stranger.settimeout(20)
        stranger.sendall(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        with pytest.raises(ConnectionError):
            send_for_ever(stranger, ping)
        stranger.close()
        assert policy.infer(observation(1.0))[0, 0] == 1.0
        policy.close()


def test_more_requests_than_may_wait_are_told_so():
    gate = threading.Event()

    def act(shown):
        gate.wait(30)
        return Named()(shown)

    with served(act, max_waiting=1, max_batch=1) as at:
        policies = [RemotePolicy(at.address) for _ in range(3)]
        for number, policy in enumerate(policies, 1):
            policy.connection.send(pack(observation()))
            while at.server.connections.num_in_flight < number:
                time.sleep(0.01)
        with pytest.raises(
            ValueError, match="the policy server refuses: 1 requests wait already: ask again later"
        ):
            policies[2]._receive()
        gate.set()
        for policy in policies:
            policy.close()


@pytest.mark.parametrize(
    "frame",
    [Frame(Opcode.PING, b""), Frame(Opcode.CONT, b"", fin=False), Frame(Opcode.BINARY, b"")],
)
def test_a_flood_of_small_frames_ends_its_own_connection(frame):
    with served(Named(), max_rate=50.0) as at:
        policy, flood = RemotePolicy(at.address), RemotePolicy(at.address)
        first = (
            Frame(Opcode.BINARY, b"", fin=False).serialize(mask=True)
            if frame.opcode is Opcode.CONT
            else b""
        )
        flood.connection.socket.sendall(first + frame.serialize(mask=True) * (SMALL_FRAMES + 50))
        with pytest.raises(ConnectionClosed):
            until_it_ends(flood)
        assert policy.infer(observation(1.0))[0, 0] == 1.0
        policy.close()
        flood.close()


def until_it_ends(policy: RemotePolicy) -> None:
    for _ in range(2 * SMALL_FRAMES):
        policy.connection.recv(timeout=20)


def test_messages_beyond_the_limit_end_their_own_connection():
    with served(Named(), max_message_bytes=10_000) as at:
        small, large = RemotePolicy(at.address), RemotePolicy(at.address)
        with pytest.raises((ConnectionClosed, ValueError)):
            large.infer(observation(prompt="x" * 20_000))
        assert small.infer(observation(1.0))[0, 0] == 1.0
        small.close()


def test_a_client_sends_no_faster_than_it_may():
    with served(Named(), max_rate=20.0) as at:
        policy = RemotePolicy(at.address)
        begin = time.monotonic()
        for _ in range(30):  # twenty at once, ten more at twenty a second
            policy.infer(observation())
        assert time.monotonic() - begin > 0.4
        policy.close()


def test_what_is_expected_is_what_the_small_server_expects():
    assert EXPECTED.num_bytes > len(pack(observation()))
