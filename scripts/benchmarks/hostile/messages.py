"""Broken messages: wrong bytes, structure, arrays and entries."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgpack
import numpy as np

from vla.serve.codec import pack

Message = dict[str, object]
SIZE = 64
DTYPES: tuple[object, ...] = (
    "|O",
    "V8",
    "<c8",
    "f4,f4",
    "(2,3)f4",
    "",
    ",",
    "U",
    "M8[ns]",
    "x" * 1000,
    5,
    None,
    ["<f4"],
    "<U1000000000",
)
SHAPES: tuple[object, ...] = (
    [2],
    [-1],
    [10**18],
    [0, 10**18],
    [-1, -1],
    "x",
    None,
    [1.5],
    [[2]],
    {},
)
WORDS: tuple[object, ...] = (
    None,
    "x",
    b"x",
    "long " * 20_000,
    "\0",
    "\u202e",
    {"a": 1},
    [],
    ["1"] * 7,
    [[1] * 7],
)
NUMBERS: tuple[object, ...] = (3, -1, 1e308, 2**63, True)
ARRAYS: tuple[object, ...] = (
    np.full(7, np.nan),
    np.full(7, np.inf),
    np.zeros(0),
    np.zeros((7, 1)),
    np.zeros((SIZE, SIZE, 4), np.uint8),
)
LARGEST = b"\xdc\x03\xe8" + (b"\xdc\x03\xe8" + b"\x80" * 1000) * 1000 + b"\xc0" * 3_000_000
"""Four megabytes that begin with a million empty mappings."""


def valid_message() -> Message:
    """An observation that the server takes."""
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    return {
        "images": {"front": picture, "wrist": picture},
        "state": np.zeros(7, np.float32),
        "prompt": "go",
    }


def flip_bytes(draw: random.Random) -> bytes:
    data = bytearray(pack(valid_message()))
    for _ in range(draw.randrange(1, 8)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def truncate(draw: random.Random) -> bytes:
    data = pack(valid_message())
    return data[: draw.randrange(len(data))]


def replace_entry(draw: random.Random) -> bytes:
    """Replace one entry by another value."""
    message = valid_message()
    name = draw.choice(("state", "prompt", "images", "front", "going", "observation/state"))
    return pack({**message, name: draw.choice((*WORDS, *NUMBERS, *ARRAYS))})


def contradict_array(draw: random.Random) -> bytes:
    """Write an array whose type or shape contradicts its data."""
    array: dict[bytes, object] = {
        b"__ndarray__": True,
        b"data": draw.randbytes(8),
        b"dtype": "<f4",
        b"shape": [2],
    }
    array[draw.choice((b"dtype", b"shape"))] = draw.choice((*DTYPES, *SHAPES))
    return bytes(msgpack.packb({"front": array, "state": array, "prompt": "go"}))


def nest_deeply(draw: random.Random) -> bytes:
    return b"\x81\xa1a" * draw.choice((3, 10, 300, 1100, 50_000)) + b"\x01"


def repeat_long_keys(draw: random.Random) -> bytes:
    outer, inner = draw.choice((("k", 2000), ("k" * 10_000, 900), ("k" * 100_000, 5000)))
    return bytes(msgpack.packb({outer: {f"{i}": 0 for i in range(inner)}}))


def announce_lengths(draw: random.Random) -> bytes:
    """Announce a length beyond the data."""
    return (
        draw.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"))
        + b"\xff\xff\xff\xff"
        + draw.randbytes(8)
    )


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    flip_bytes,
    truncate,
    replace_entry,
    contradict_array,
    nest_deeply,
    repeat_long_keys,
    announce_lengths,
)


def draw_broken_message(draw: random.Random) -> bytes:
    return draw.choice(KINDS)(draw)
