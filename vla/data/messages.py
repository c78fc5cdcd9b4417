"""Messages of a chat: read from rows in the forms that people write, as one text, and as what tells
prompts apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant" | "tool", "content": text}"""
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""The roles of ShareGPT's messages, {"from": ..., "value": ...}, that have another name there."""


def user_message(text: str) -> list[Message]:
    """A text that a user says."""
    return [{"role": "user", "content": text}]


def parse_messages(value: Any, role: str, where: str, column: str) -> list[Message]:
    """Messages from a list of messages, or from a text that `role` says.

    Raises ValueError naming the row, the column and what is wrong.
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


def _message(message: Any, where: str, column: str) -> Message:
    if not isinstance(message, Mapping):
        raise ValueError(
            f"{where}: {column} holds {message!r}, which is no message with role and content"
        )
    if "from" in message and "role" not in message:
        name = message["from"]
        role = SHAREGPT_ROLES.get(name, name) if isinstance(name, str) else name
        message = {"role": role, "content": message.get("value")}
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = _joined(content)
    if not isinstance(content, str):
        raise ValueError(
            f"{where}: {column} holds a message without a text `content`: {dict(message)!r}"
        )
    if message.get("role") not in ROLES:
        raise ValueError(
            f"{where}: {column} has the role {message.get('role')!r}; known are {', '.join(ROLES)}"
        )
    return {"role": message["role"], "content": content}


def _joined(parts: Sequence[Any]) -> str | None:
    """The text of a content in parts, [{"type": "text", "text": ...}]; None where a part is
    something else."""
    texts = [
        part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        for part in parts
    ]
    return "".join(texts) if texts and all(isinstance(text, str) for text in texts) else None


def parse_prompt(
    values: Mapping[str, Any], where: str, column: str = "prompt"
) -> tuple[Message, ...]:
    """The messages of the prompt in a row's column, a text or messages that end with what is asked,
    behind its column `system` where it has one.

    Raises ValueError naming the row and what is wrong.
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
    messages: Sequence[Message], values: Mapping[str, Any], where: str
) -> list[Message]:
    """The messages behind the row's column `system`, where it has one.

    Raises ValueError where it is no text, or where the messages begin with another one.
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
    """What is asked, for people, judges and verifiers: a user's single message as it is, else every
    message behind its role.
    """
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def prompt_key(messages: Sequence[Message]) -> str:
    """What tells prompts apart when they are split: the words that were asked, whoever the system
    message says that the model is, and however white space and characters are written.
    """
    asked = [message for message in messages if message["role"] != "system"] or list(messages)
    return normalize_for_split(messages_to_text(asked))


def normalize_words(text: str) -> str:
    """A text as it is compared with others of a source: Unicode's form NFC, white space as single
    blanks."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalize_for_split(text: str) -> str:
    """A text as a split sees it: in Unicode's form NFKC, white space as single blanks. Texts that
    differ in nothing else fall on one side.
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())
