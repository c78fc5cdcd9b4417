"""What a message may hold is checked before it meets others', at a cost in proportion to its
bytes."""

import tracemalloc

import msgpack
import numpy as np
import pytest

from tests.serve.small_server import EXPECTED, STATE, observation
from vla.serve import codec, requests
from vla.serve.codec import pack, unpack
from vla.serve.requests import BadRequest, ObservationSpec


def nested(depth: int, inside):
    for _ in range(depth):
        inside = {"a": inside}
    return inside


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"k" * 100_000: {str(i): 0 for i in range(5000)}}, "5000 exceeds max_map_len"),
        ({"k" * 65: 0}, "a text of at most 64 bytes"),
        ({f"k{i}": 0 for i in range(65)}, "at most 64 keys"),
        ({f"a{i}": {f"b{j}": 0 for j in range(10)} for i in range(10)}, "at most 64 keys"),
        (nested(4, 0), "front is missing: the observation holds a/a/a/a"),
        (nested(5, 0), "at most 4 deep"),
        (nested(900, 0), "at most 4 deep"),
        (nested(2000, 0), "no message in msgpack"),
        ([[0] * 1000] * 11, "more than 10000 entries"),
        ([0] * 1001, "exceeds max_array_len"),
        ({"images/front": 0, "images": {"front": 0}}, "images/front is there more than once"),
        (msgpack.ExtType(5, b"x"), "exceeds max_ext_len"),
    ],
)
def test_deep_wide_and_long_messages_are_refused(message, complaint):
    # What msgpack's own writer refuses to write a client can still send, so the deepest is written
    # by hand.
    deep = isinstance(message, dict) and "a" in message and _depth(message) > 500
    raw = b"\x81\xa1a" * _depth(message) + b"\x00" if deep else msgpack.packb(message)
    with pytest.raises(ValueError, match=complaint):
        EXPECTED.read(unpack(raw))


def _depth(message) -> int:
    depth = 0
    while isinstance(message, dict) and message:
        message, depth = next(iter(message.values())), depth + 1
    return depth


def array(**changes) -> dict:
    parts = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    return parts | {name.encode(): value for name, value in changes.items()}


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            array(dtype=dtype)
            for dtype in (
                "|O",
                "<c8",
                "f4,f4",
                "(2,)f4",
                "",
                ",",
                "U4",
                "<M8[s]",
                "x" * 99,
                5,
                None,
            )
        ),
        *(
            array(shape=shape)
            for shape in ([3], [-1], [10**18], [0, 10**18], [2**63, 2], "x", None, [1.5], [[2]], {})
        ),
        array(shape=[1] * 9 + [2]),
        *(array(data=data) for data in (None, "text", 5, [0] * 8, bytes(7))),
        {b"__ndarray__": True},
        {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"},
        {b"__npgeneric__": True, b"data": 10**18, b"dtype": "|i1"},
        {b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"},
    ],
)
def test_arrays_that_are_not_what_they_state_are_refused(wrong):
    with pytest.raises(ValueError, match="no message in msgpack"):
        unpack(msgpack.packb({"x": wrong}))


def test_the_limits_leave_room_for_what_openpi_and_ours_send():
    message = {
        "observation": {"images": {"front": np.zeros((4, 4, 3), np.uint8)}, "state": [0.0] * STATE}
    }
    images, state, prompt, _ = EXPECTED.read(unpack(pack({**message, "prompt": "go"})))
    assert (list(images), state.tolist(), prompt) == (["front"], [0.0] * STATE, "go")
    assert codec.MAX_LENGTH >= 1000
    assert requests.MAX_DEPTH >= 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("state", value)
            for value in (
                None,
                "x",
                [],
                ["1"] * STATE,
                [[1] * STATE],
                {"a": 1},
                b"123",
                [1, [2], 3],
            )
        ),
        *(("state", np.full(STATE, value)) for value in (np.nan, np.inf, 1e300, -2e9)),
        ("state", np.zeros((1000, STATE))),
        *(
            ("front", value)
            for value in (None, [], "x", [[[1]]], np.zeros((4, 4, 4), np.uint8), {"a": {}})
        ),
        *(
            ("prompt", value)
            for value in (None, 3, b"go", ["go"], "x" * 4097, "\u00e9" * 2049, np.float32(1))
        ),
        *(
            ("going", {"plan": np.zeros((3, 2)), "late": late})
            for late in (-1, 4, 10**18, None, "1", 1.5, [])
        ),
        *(
            ("going", {"plan": plan, "late": 0})
            for plan in ("x", [], np.full((2, 2), np.nan), np.full((2, 2), 1e38))
        ),
        ("going", {"plan": np.zeros((3, 2))}),
    ],
)
def test_no_odd_entry_is_taken(name, value):
    message = observation() | ({"images": {"front": value}} if name == "front" else {name: value})
    with pytest.raises(BadRequest, match=name) as caught:
        EXPECTED.read(message)
    assert len(str(caught.value)) < 300


def test_a_prompt_is_held_against_the_policys_room_before_it_joins_a_batch():
    asked = []

    def encode(text: str) -> list[str]:
        asked.append(text)
        if len(text.split()) > 3:
            raise ValueError("it takes 4 tokens")
        return text.split()

    expected = ObservationSpec(("front",), 4, STATE, encode=encode, max_prompt_bytes=20)
    assert expected.read(observation(prompt="one two three"))[2] == "one two three"
    with pytest.raises(BadRequest, match="prompt: it takes 4 tokens"):
        expected.read(observation(prompt="a b c d"))
    with pytest.raises(BadRequest, match="prompt must be at most 20 bytes, this is 21"):
        expected.read(observation(prompt="x" * 21))
    assert asked == ["one two three", "a b c d"]  # the longest was not tokenised


@pytest.mark.parametrize(
    "raw",
    [
        msgpack.packb({"k" * 100_000: {str(i): 0 for i in range(900)}}),
        b"\x81\xa1a" * 1000 + b"\x90" * 100_000,
        b"\xdc\x03\xe8"
        + (b"\xdc\x03\xe8" + b"\x80" * 1000) * 1000,  # a thousand lists of a thousand mappings
        b"\xdc\x03\xe8" * 1000,
    ],
    ids=["long key", "deep", "wide", "announced"],
)
def test_memory_grows_with_the_bytes_of_a_message_only(raw):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"no message in msgpack|a text of at most|at most 64"):
            EXPECTED.read(unpack(raw))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Lists that are announced and never filled: a thousand levels of a thousand pointers of 8
    # bytes.
    assert peak < 20 * len(raw) + 1000 * codec.MAX_LENGTH * 8 + 2**20
