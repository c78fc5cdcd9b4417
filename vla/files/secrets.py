"""Masking of secrets in addresses before they are written to files, reports or messages.

Secrets are the text before the host (`https://user:key@host`) and the values of parameters with a
telling name (`?api_key=...`). A masked address still shows its host, and no longer works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
NAMES = (
    r"[\w.%-]*(?:key|key[_-]?id|token|jwt|bearer|secret|passw(?:or)?d|passphrase|pwd|auth|"
    r"authorization|signature|"
    r"credentials?|session)|sig|sas|code|pass|pw"
)
"""Parameters whose value is a secret: `api_key`, `access_token`, `X-Amz-Signature` and the like."""
ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<rest>[^\s'\"<>]+)", re.IGNORECASE)
PASSWORD = re.compile(r"[^/]*:(?!\d+(?:/|$))")
"""A host and a colon that no port follows."""
PARAMETER = re.compile(
    rf"(?P<name>(?:[?&;#]|%3F|%26)(?:{NAMES})(?:\[\])?(?:=|%3D))[^&;#\s]*", re.IGNORECASE
)
"""In an address that is a parameter of another, its signs are written as %3F, %26 and %3D."""


def mask_secrets(text: str) -> str:
    """A text with the secrets of its addresses masked."""
    return PARAMETER.sub(lambda match: match["name"] + MASK, ADDRESS.sub(mask_user, text))


def mask_user(match: re.Match[str]) -> str:
    """An address with the text before its host masked; a password may hold an unescaped slash."""
    rest = match["rest"]
    host = rest.partition("/")[0]
    _, at, after = (host if "@" in host else rest).rpartition("@")
    if not at or ("@" not in host and not PASSWORD.match(rest)):
        return match[0]
    return match["scheme"] + MASK + "@" + after + (rest[len(host) :] if "@" in host else "")


def mask_nested(values: Any) -> Any:
    """Plain values at any depth, with every text masked."""
    if isinstance(values, str):
        return mask_secrets(values)
    if isinstance(values, Mapping):
        return {key: mask_nested(value) for key, value in values.items()}
    return [mask_nested(value) for value in values] if isinstance(values, list | tuple) else values


def find_masked_settings(values: object, path: str = "") -> list[str]:
    """The paths of settings that hold an address whose secrets were masked when saved."""
    if isinstance(values, str):
        return [path] if any(MASK in match["rest"] for match in ADDRESS.finditer(values)) else []
    items = (
        values.items()
        if isinstance(values, Mapping)
        else enumerate(values)
        if isinstance(values, list)
        else ()
    )
    return [
        masked
        for key, value in items
        for masked in find_masked_settings(value, f"{path}.{key}" if path else str(key))
    ]
