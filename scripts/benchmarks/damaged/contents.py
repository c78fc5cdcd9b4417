"""Damaged contents of a file: bytes, texts and values that went wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

Values = dict[str, object]
TEXT_SUFFIXES = (".json", ".yaml", ".jsonl", ".jinja")
WRONG_VALUES: tuple[object, ...] = (None, 5, "x", [], {}, [None], {"x": 1}, -1.5, True)


def flip_bytes(content: bytes) -> bytes:
    changed = bytearray(content or b"\0")
    for index in random.Random(len(content)).sample(range(len(changed)), min(8, len(changed))):
        changed[index] ^= 0x5A
    return bytes(changed)


BYTE_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "cut by one": lambda content: content[:-1],
    "garbage": lambda content: random.Random(1).randbytes(300),
    "zeros": lambda content: bytes(len(content)),
    "flipped": flip_bytes,
}


def replace_by(text: bytes) -> Callable[[bytes], bytes]:
    return lambda content: text


TEXT_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    **{text.decode(): replace_by(text) for text in (b"[]", b"{}", b"null", b"5", b'"x"')},
    "latin1": lambda content: b"\xff\xfe" + content,
    "nan": lambda content: content.replace(b"0", b"NaN", 3),
    "deep": lambda content: b"[" * 100_000,
}


def damaged_contents(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """(damage, new content) of every damage to a file; None: the file is missing."""
    content = path.read_bytes()
    yield "missing", None
    is_text = path.suffix in TEXT_SUFFIXES
    for name, change in (BYTE_DAMAGES | TEXT_DAMAGES if is_text else BYTE_DAMAGES).items():
        yield name, change(content)
    if path.suffix not in (".json", ".yaml"):
        return
    values = yaml.safe_load(content)
    if isinstance(values, dict):
        write = json.dumps if path.suffix == ".json" else yaml.safe_dump
        for name, changed in spoil_values(values):
            yield name, write(changed).encode()


def spoil_values(values: Values) -> Iterator[tuple[str, Values]]:
    """The values with one key, or one below it, missing or of another kind."""
    for key, value in values.items():
        yield f"without {key}", {name: other for name, other in values.items() if name != key}
        for wrong in WRONG_VALUES:
            yield f"{key}={wrong!r}", {**values, key: wrong}
        for name, changed in spoil_values(value) if isinstance(value, dict) else ():
            yield f"{key}.{name}", {**values, key: changed}
