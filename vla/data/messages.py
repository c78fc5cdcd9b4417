"""Chat messages: parsing from the common row formats, rendering as text, and keys for splits."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from vla.files.reading import JsonMapping

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant" | "tool", "content": text}"""
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Roles of ShareGPT's messages, {"from": ..., "value": ...}, by their names there."""


def user_message(text: str) -> list[Message]:
    """A chat of one user message."""
    return [{"role": "user", "content": text}]


def parse_messages(value: object, role: str, where: str, column: str) -> list[Message]:
    """Messages from a list of messages, or from the text of one message of `role`.

    Raises ValueError with the row, the column and the fault.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or not value:
        raise ValueError(
            f"{where}: {column} must be a text or a list of messages, not {type(value).__name__}"
        )
    return [_message(message, where, column) for message in value]


def _message(message: object, where: str, column: str) -> Message:
    if not isinstance(message, Mapping):
        raise ValueError(
            f"{where}: {column} holds {message!r}, which is no message with role and content"
        )
    if "from" in message and "role" not in message:
        name = message["from"]
        message = {
            "role": SHAREGPT_ROLES.get(name, name) if isinstance(name, str) else name,
            "content": message.get("value"),
        }
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = _text_content(content)
    if not isinstance(content, str):
        raise ValueError(
            f"{where}: {column} holds a message without a text `content`: {dict(message)!r}"
        )
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{where}: {column} has the role {role!r}; known are {', '.join(ROLES)}")
    return {"role": role, "content": content}


def _text_content(parts: Sequence[object]) -> str | None:
    """The text of a content in parts, [{"type": "text", "text": ...}]; None where a part is no
    text."""
    texts: list[str] = []
    for part in parts:
        text = (
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        )
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts) if texts else None


def parse_prompt(values: JsonMapping, where: str, column: str = "prompt") -> tuple[Message, ...]:
    """The messages of a prompt column, preceded by the row's column `system` where there is one.

    The column holds a text, or messages that end with the user or a tool. Raises ValueError with
    the row and the fault.
    """
    messages = add_system_message(
        parse_messages(values[column], "user", where, column), values, where
    )
    if messages[-1]["role"] not in ("user", "tool"):
        raise ValueError(
            f"{where}: {column} ends with the role {messages[-1]['role']!r}; the last must be "
            "user or tool"
        )
    if not messages[-1]["content"].strip():
        raise ValueError(f"{where}: has no text in the column {column}")
    return tuple(messages)


def add_system_message(
    messages: Sequence[Message], values: JsonMapping, where: str
) -> list[Message]:
    """Put the row's column `system`, where there is one, before the messages.

    Raises ValueError where it is no text, or where the messages begin with a system message.
    """
    system = values.get("system")
    if system is None:
        return list(messages)
    if not isinstance(system, str):
        raise ValueError(f"{where}: system ({system!r}) must be a text")
    if messages[0]["role"] == "system":
        raise ValueError(
            f"{where}: has a column system and messages that begin with a system message: leave "
            "one out"
        )
    return [{"role": "system", "content": system}, *messages]


def messages_to_text(messages: Sequence[Message]) -> str:
    """A prompt as text for people, judges and verifiers.

    A single user message stays as it is; otherwise every message follows its role.
    """
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def prompt_key(messages: Sequence[Message]) -> str:
    """The key of a prompt for splits: its text without system messages, normalized by
    `normalize_for_split`."""
    turns = [message for message in messages if message["role"] != "system"] or list(messages)
    return normalize_for_split(messages_to_text(turns))


def normalize_words(text: str) -> str:
    """A text for comparisons within a source: Unicode form NFC, white space as single blanks."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalize_for_split(text: str) -> str:
    """A text for splits: Unicode form NFKC, white space as single blanks.

    Texts that differ in nothing else get one side of a split.
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())
