"""Messages of nested mappings, text, numbers and arrays as msgpack, as openpi's clients and servers write them.

An array is the map {b"__ndarray__": True, b"data": bytes, b"dtype": text, b"shape": sizes}, a NumPy scalar
{b"__npgeneric__": True, b"data": number, b"dtype": text}. Nothing is ever executed by reading one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ARRAY, SCALAR, DATA, DTYPE, SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
REFUSED_KINDS = "VOc"
"""Structured, object and complex arrays have no place in a message."""


def pack(message: Any) -> bytes:
    """A message as bytes; ValueError when it holds an array of objects or complex numbers."""
    import msgpack

    return msgpack.packb(message, default=_plain)


def unpack(data: bytes) -> Any:
    """The message that the bytes stand for; ValueError when they stand for none."""
    import msgpack

    try:
        return msgpack.unpackb(data, object_hook=_array)
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"these {len(data)} bytes are no message in msgpack: {error}") from None


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise ValueError(f"a message cannot hold a {type(value).__name__}: arrays, numbers and text only")
    if value.dtype.kind in REFUSED_KINDS:
        raise ValueError(f"a message cannot hold numbers of type {value.dtype}: convert them to float32 or uint8")
    if isinstance(value, np.ndarray):
        return {ARRAY: True, DATA: value.tobytes(), DTYPE: value.dtype.str, SHAPE: value.shape}
    return {SCALAR: True, DATA: value.item(), DTYPE: value.dtype.str}


def _array(value: dict[Any, Any]) -> Any:
    if ARRAY in value or SCALAR in value:
        dtype = np.dtype(value[DTYPE])
        if dtype.kind in REFUSED_KINDS:
            raise ValueError(f"numbers of type {dtype} are not accepted")
        if ARRAY in value:
            return np.frombuffer(value[DATA], dtype=dtype).reshape(value[SHAPE])
        return dtype.type(value[DATA])
    return value
