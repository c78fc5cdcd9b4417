"""A served policy answers as it would locally, several clients in one call, and says what is wrong
with a request."""

import json
import threading
import urllib.request

import numpy as np
import pytest

from tests.serve.small_server import EXPECTED, SPEC, Named, observation, served
from vla.serve.client import ChunkPlayer, RemotePolicy
from vla.serve.codec import pack, unpack
from vla.serve.requests import BadRequest


def test_an_array_has_the_bytes_that_openpi_gives_it():
    # By hand from msgpack's format: 0x84 a map of 4; 0xc4 n bytes; 0xc3 true; 0xa3 text of 3; 0x91
    # an array of 1.
    by_hand = b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x02\x01\x02\xc4\x05dtype\xa3|u1\xc4\x05shape\x91\x02"
    assert pack(np.array([1, 2], np.uint8)) == by_hand
    assert unpack(by_hand).tolist() == [1, 2]


def test_messages_come_back_as_they_were():
    message = {
        "images": {"front": np.arange(12, dtype=np.uint8).reshape(2, 2, 3)},
        "state": np.float32(1.5),
        "n": 3,
    }
    back = unpack(pack(message))
    np.testing.assert_array_equal(back["images"]["front"], message["images"]["front"])
    assert back["images"]["front"].dtype == np.uint8
    assert (back["state"], back["n"]) == (1.5, 3)


@pytest.mark.parametrize("value", [np.array([object()]), np.array([1j]), object()])
def test_what_has_no_place_in_a_message_is_refused(value):
    with pytest.raises(ValueError, match="a message cannot hold"):
        pack({"x": value})
    with pytest.raises(ValueError, match="are no message in msgpack"):
        unpack(b"\xc1")
    with pytest.raises(ValueError, match="are no message in msgpack"):
        unpack(pack({"x": np.zeros(3)})[:-2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": 3}, "prompt must be text, this is a int"),
        ({"state": np.zeros(2)}, r"state must be 3 finite numbers, this has shape \[2\]"),
        ({"state": np.full(3, np.nan)}, "state must be 3 finite numbers"),
        (
            {"images": {"front": np.zeros((8, 8, 3), np.uint8)}},
            r"front must be uint8 \[4, 4, 3\], this is uint8 \[8, 8",
        ),
        (
            {"images": {"wrist": np.zeros((4, 4, 3), np.uint8)}},
            "front is missing: the observation holds images/wrist",
        ),
        ({"observation/state": np.zeros(3)}, "state is there more than once"),
    ],
)
def test_a_wrong_observation_is_named(changes, message):
    with pytest.raises(BadRequest, match=message):
        EXPECTED.read(observation() | changes)


def test_openpi_style_names_are_understood():
    flat = {
        "observation/front": np.zeros((4, 4, 3), np.uint8),
        "observation/state": np.ones(3),
        "prompt": "go",
    }
    images, state, prompt, going = EXPECTED.read(flat)
    assert going is None
    assert (list(images), state.tolist(), prompt) == (["front"], [1, 1, 1], "go")


def test_a_client_is_told_who_it_speaks_to_and_gets_actions():
    with served(Named()) as at:
        policy = RemotePolicy(at.address)
        assert policy.policy_spec == {"action_spec": SPEC, "chunk": 5}
        policy.check(SPEC)
        with pytest.raises(
            ValueError, match=r"action_spec.control_hz is 20.0 on the server, 10.0 here"
        ):
            policy.check(SPEC | {"control_hz": 10.0})
        np.testing.assert_array_equal(policy.infer(observation(0.25)), np.full((5, 2), 0.25))
        assert policy.timing["batch"] == 1
        policy.close()


def test_a_bad_request_is_answered_in_words_and_the_next_one_works():
    with served(Named()) as at:
        policy = RemotePolicy(at.address)
        with pytest.raises(
            ValueError, match="the policy server refuses: state must be 3 finite numbers"
        ):
            policy.infer(observation() | {"state": np.zeros(9)})
        with pytest.raises(
            ValueError, match="the policy failed: RuntimeError: the weights are gone"
        ):
            policy.infer(observation(prompt="fail"))
        assert policy.infer(observation(1.0))[0, 0] == 1.0
        policy.close()


def test_health_and_limits():
    with served(Named(), max_clients=1) as at:
        with urllib.request.urlopen(f"http://127.0.0.1:{at.port}/healthz") as health:
            assert (health.status, health.read()) == (200, b"OK\n")
        with urllib.request.urlopen(f"http://127.0.0.1:{at.port}/status") as answer:
            status = json.load(answer)
        assert status["requests"] == status["clients"] == 0
        policy = RemotePolicy(at.address)
        policy.infer(observation())
        with pytest.raises(
            ValueError, match="the policy server ended the connection: 1 clients are served already"
        ):
            RemotePolicy(at.address)
        policy.connection.send("words")
        with pytest.raises(ValueError, match="observations come as msgpack in binary messages"):
            policy._receive()
        policy.close()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "ws://127.0.0.1:9",
            r"no policy is served at ws://127.0.0.1:9 .*: start vla-serve",
        ),
        ("127.0.0.1:8000", "scheme isn't ws or wss"),
    ],
)
def test_an_address_without_a_server_is_told(address, message):
    with pytest.raises(ValueError, match=message):
        RemotePolicy(address, patience_seconds=5)


def test_a_server_that_goes_away_is_told():
    with served(Named()) as at:
        policy = RemotePolicy(at.address)
    with pytest.raises(ValueError, match="the policy server ended the connection"):
        policy.infer(observation())
    policy.close()


def counting():
    """A policy whose chunk n is 100 n, 100 n + 1, ... 100 n + 4."""
    calls = []

    def infer(observation):
        calls.append(observation)
        return np.array([[100 * len(calls) + i] for i in range(5)])

    return infer, calls


def test_without_looking_ahead_chunks_follow_each_other_whole():
    infer, calls = counting()
    chunks = ChunkPlayer(infer, ahead=0)
    actions = [int(chunks.next({"step": t})[0]) for t in range(7)]
    assert actions == [100, 101, 102, 103, 104, 200, 201]
    assert [c["step"] for c in calls] == [0, 5]


def test_a_chunk_that_was_asked_for_early_is_entered_where_time_has_come_to():
    infer, calls = counting()
    chunks = ChunkPlayer(infer, ahead=2)
    actions = []
    for t in range(8):
        actions.append(int(chunks.next({"step": t})[0]))
        if chunks.pending is not None:
            chunks.pending.exception()  # the next chunk is there before the next step
    # Step 2 leaves two actions, so the second chunk is thought from step 2; by step 3 one action of
    # it has passed.
    assert actions == [100, 101, 102, 201, 202, 301, 302, 401]
    assert [c["step"] for c in calls] == [0, 2, 4, 6]
    assert chunks.num_waits == 0


def test_a_chunk_that_is_late_is_waited_for_and_counted():
    infer, _ = counting()
    gate = threading.Event()
    gate.set()

    def slow(observation):
        assert gate.wait(30)
        return infer(observation)

    chunks = ChunkPlayer(slow, ahead=1)
    actions = [int(chunks.next({})[0]) for _ in range(3)]
    gate.clear()
    actions += [
        int(chunks.next({})[0]) for _ in range(2)
    ]  # asked for at 103, the last of the old chunk at 104
    threading.Timer(0.05, gate.set).start()
    actions.append(int(chunks.next({})[0]))
    # 103 and 104 were executed since: the first two of the new chunk are past
    assert actions == [100, 101, 102, 103, 104, 202]
    assert chunks.num_waits == 1
    chunks.reset()
    assert chunks.remaining == []


class Sent:
    """A connection on which a server sends one message."""

    def __init__(self, message):
        self.message = message

    def send(self, message):
        pass

    def recv(self, timeout):
        return pack(self.message)


@pytest.mark.parametrize(
    "message",
    [
        [1],
        5,
        {},
        {"actions": "x"},
        {"actions": np.zeros(7)},
        {"actions": np.zeros((0, 7))},
        {"actions": np.full((4, 7), np.inf)},
    ],
)
def test_a_client_refuses_what_is_no_chunk_of_actions(message):
    policy = RemotePolicy.__new__(RemotePolicy)
    policy.connection, policy.patience_seconds = Sent(message), 1.0
    with pytest.raises(ValueError, match="the policy server sent"):
        policy.infer({})
