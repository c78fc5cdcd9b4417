"""Messages as msgpack: nested mappings, text, numbers and arrays, in the form of openpi's clients.

An array is the map {b"__ndarray__": True, b"data": bytes, b"dtype": text, b"shape": sizes}, a NumPy
scalar {b"__npgeneric__": True, b"data": number, b"dtype": text}. Reading a message executes
nothing. Time and memory of reading grow with the bytes of a message: the number of its lists,
mappings and entries is bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection

import numpy as np

ARRAY = b"__ndarray__"
SCALAR = b"__npgeneric__"
DATA = b"data"
DTYPE = b"dtype"
SHAPE = b"shape"
KINDS = "biuf"
"""Arrays of a message hold booleans, whole numbers or floating-point numbers."""
NUMBERS = re.compile(rf"[<>|=]?[{KINDS}]\d{{1,2}}")
MAX_LENGTH = 1000
"""Entries of one list or one mapping. A reader of msgpack reserves memory for all that a list
announces."""
MAX_ENTRIES = 10_000
"""Entries of all lists and mappings of a message together: a byte each on the wire, a hundred in
memory."""
MAX_DIMENSIONS = 8


def pack(message: object) -> bytes:
    """Serialize a message.

    Raises:
        ValueError: It holds an object, or an array of objects, text or complex numbers.
    """
    import msgpack

    return msgpack.packb(message, default=_encode_numpy)


def unpack(data: bytes) -> object:
    """Parse a message.

    Raises:
        ValueError: The bytes are no message, or hold more entries than one may have.
    """
    import msgpack

    num_entries = 0

    def count(entries: Collection[object]) -> None:
        nonlocal num_entries
        num_entries += 1 + len(entries)
        if num_entries > MAX_ENTRIES:
            raise ValueError(
                f"lists and mappings hold more than {MAX_ENTRIES} entries: send arrays"
            )

    def read_mapping(value: dict[object, object]) -> object:
        count(value)
        return _decode_mapping(value)

    def read_list(value: list[object]) -> list[object]:
        count(value)
        return value

    limits = {"max_map_len": MAX_LENGTH, "max_array_len": MAX_LENGTH, "max_ext_len": 0}
    try:
        return msgpack.unpackb(data, object_hook=read_mapping, list_hook=read_list, **limits)
    except (
        msgpack.exceptions.UnpackException,
        ValueError,
        TypeError,
        KeyError,
        OverflowError,
    ) as error:
        raise ValueError(f"these {len(data)} bytes are no message in msgpack: {error}") from None


def _encode_numpy(value: object) -> dict[bytes, object]:
    if not isinstance(value, np.ndarray | np.generic):
        raise ValueError(
            f"a message cannot hold a {type(value).__name__}: arrays, numbers and text only"
        )
    if value.dtype.kind not in KINDS:
        raise ValueError(
            f"a message cannot hold numbers of type {value.dtype}: convert them to float32 or uint8"
        )
    if isinstance(value, np.ndarray):
        return {ARRAY: True, DATA: value.tobytes(), DTYPE: value.dtype.str, SHAPE: value.shape}
    return {SCALAR: True, DATA: value.item(), DTYPE: value.dtype.str}


def _decode_mapping(value: dict[object, object]) -> object:
    """Decode an array or a NumPy scalar; any other mapping stays."""
    if ARRAY not in value and SCALAR not in value:
        return value
    dtype = _parse_dtype(value[DTYPE])
    data = value[DATA]
    if SCALAR in value:
        if not isinstance(data, bool | int | float):
            raise ValueError(f"a number cannot be a {type(data).__name__}")
        return dtype.type(data)
    shape = value[SHAPE]
    if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"an array is bytes and at most {MAX_DIMENSIONS} sizes")
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError("the sizes of an array are whole numbers from 0")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array of {len(data)} bytes does not have the sizes that it states")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _parse_dtype(name: object) -> np.dtype[np.generic]:
    """A numeric dtype by its name.

    `np.dtype` also parses lists of fields and shapes, so the form of the name is checked first.
    """
    if not isinstance(name, str) or not NUMBERS.fullmatch(name):
        raise ValueError(
            "the type of an array is written as '<f4': booleans, whole or floating-point numbers"
        )
    return np.dtype(name)
