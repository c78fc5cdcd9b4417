"""What can happen to the content of a file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

TEXTS = (".json", ".yaml", ".jsonl", ".jinja")
WRONG = (None, 5, "x", [], {}, [None], {"x": 1}, -1.5, True)


def flipped(content: bytes) -> bytes:
    changed = bytearray(content or b"\0")
    for place in random.Random(len(content)).sample(range(len(changed)), min(8, len(changed))):
        changed[place] ^= 0x5A
    return bytes(changed)


BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "cut by one": lambda content: content[:-1],
    "garbage": lambda content: random.Random(1).randbytes(300),
    "zeros": lambda content: bytes(len(content)),
    "flipped": flipped,
}
OF_TEXTS: dict[str, Callable[[bytes], bytes]] = {
    **{
        text.decode(): lambda content, text=text: text
        for text in (b"[]", b"{}", b"null", b"5", b'"x"')
    },
    "latin1": lambda content: b"\xff\xfe" + content,
    "nan": lambda content: content.replace(b"0", b"NaN", 3),
    "deep": lambda content: b"[" * 100_000,
}


def damages(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """(name, new content) of all that can happen to a file; None: it is missing."""
    content = path.read_bytes()
    yield "missing", None
    for name, change in (BYTES | OF_TEXTS if path.suffix in TEXTS else BYTES).items():
        yield name, change(content)
    if path.suffix in (".json", ".yaml"):
        values = yaml.safe_load(content)
        for name, changed in wrong_values(values) if isinstance(values, dict) else ():
            yield (
                name,
                (
                    json.dumps(changed) if path.suffix == ".json" else yaml.safe_dump(changed)
                ).encode(),
            )


def wrong_values(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The values with one key, or one below it, gone or of another kind."""
    for key, value in values.items():
        yield f"without {key}", {name: other for name, other in values.items() if name != key}
        for wrong in WRONG:
            yield f"{key}={wrong!r}", {**values, key: wrong}
        for below, changed in wrong_values(value) if isinstance(value, dict) else ():
            yield f"{key}.{below}", {**values, key: changed}
