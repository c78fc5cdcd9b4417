"""Texts to learn from: files or hub data sets of conversations, turned into token ids with a mask of what carries loss.

The columns are those that users of TRL and `datasets` have:

    messages                [{"role": ..., "content": ...}, ...]      every assistant turn is learned
    prompt, completion      texts, or lists of messages                   the completion is learned
    text                    plain text                                    all of it is learned
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla.data.chat import ChatFormat, Message

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Row:
    """One row of a data source. `where` names it for people: file and line, or data set and number."""

    values: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class Conversation:
    """Messages of which the assistant's from number `first_learned` on are learned; or plain text, learned
    as a whole.
    """

    messages: tuple[Message, ...]
    text: str | None
    first_learned: int
    where: str


@dataclass(frozen=True)
class Encoded:
    """Token ids; `learned[i]`: token i is predicted from what stands before it, and carries loss."""

    ids: list[int]
    learned: list[bool]


def read_rows(source: str) -> Iterator[Row]:
    """The rows of a .jsonl, .json (a list) or .parquet file, or of the training split of a data set by hub name.

    Raises ValueError naming file and line of a row that is no JSON object, or a source that cannot be had.
    """
    path = Path(source)
    if path.suffix in (".jsonl", ".ndjson"):
        yield from _jsonl_rows(_existing(path))
    elif path.suffix == ".json":
        for i, values in enumerate(json.loads(_existing(path).read_text())):
            yield Row(_object(values, f"{path}, entry {i + 1}"), f"{path}, entry {i + 1}")
    elif path.suffix == ".parquet":
        import pyarrow.parquet

        for i, values in enumerate(pyarrow.parquet.read_table(_existing(path)).to_pylist()):
            yield Row(values, f"{path}, row {i + 1}")
    else:
        yield from _hub_rows(source)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a .jsonl, .json or .parquet file, or a data set by hub name")
    return path


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open() as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    values = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where}: no JSON ({error.msg} at column {error.colno})") from None
                yield Row(_object(values, where), where)


def _object(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: a row must be an object with columns, not {type(values).__name__}")
    return values


def _hub_rows(name: str) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split="train")
    except Exception as error:  # the library raises many kinds for a name, a network or a format it does not like
        reason = str(error).split("\n")[0]
        raise ValueError(f"data set {name!r} cannot be loaded: {reason}") from error
    for i, values in enumerate(dataset):
        yield Row(values, f"{name}, row {i + 1}")


def read_conversations(source: str) -> list[Conversation]:
    """All conversations of a source.

    Raises ValueError naming the row and the column at fault, and when there are no rows.
    """
    conversations = [conversation_of(row) for row in read_rows(source)]
    if not conversations:
        raise ValueError(f"{source} has no rows")
    return conversations


def conversation_of(row: Row) -> Conversation:
    """A row with `messages`, `prompt` and `completion`, or `text`."""
    values = row.values
    if "messages" in values:
        messages = as_messages(values["messages"], "user", row.where, "messages")
        if not any(message["role"] == "assistant" for message in messages):
            raise ValueError(f"{row.where}: messages hold no assistant turn, so there is nothing to learn")
        return Conversation(tuple(messages), None, 0, row.where)
    if "prompt" in values and "completion" in values:
        prompt = as_messages(values["prompt"], "user", row.where, "prompt")
        completion = as_messages(values["completion"], "assistant", row.where, "completion")
        return Conversation((*prompt, *completion), None, len(prompt), row.where)
    if isinstance(values.get("text"), str) and values["text"]:
        return Conversation((), values["text"], 0, row.where)
    raise ValueError(
        f"{row.where}: has the columns {', '.join(values) or 'none'}; needed are messages, or prompt and completion,"
        " or text"
    )


def as_messages(value: Any, role: str, where: str, column: str) -> list[Message]:
    """Messages from a list of messages, or from a text that `role` says.

    Raises ValueError naming the row, the column and what is wrong.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, Sequence) or not value:
        raise ValueError(f"{where}: {column} must be a text or a list of messages, not {type(value).__name__}")
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise ValueError(f"{where}: {column} holds a message without a text `content`: {message!r}")
        if message.get("role") not in ROLES:
            raise ValueError(f"{where}: {column} has the role {message.get('role')!r}; known are {', '.join(ROLES)}")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def encode(chat: ChatFormat, conversation: Conversation) -> Encoded:
    """Ids by the chat template. An assistant turn is learned from its first token to its end-of-turn token; nothing
    else is.

    What precedes each assistant turn is tokenized apart from it, exactly as when the model is asked, so training and
    generation see the same ids. Raises ValueError for a template that rewrites earlier turns.
    """
    end = chat.tokenizer.eos_token_id
    if conversation.text is not None:
        ids = [*chat.encode(conversation.text), end]
        return Encoded(ids, [True] * len(ids))
    ids, learned, done = [], [], ""
    for i, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        before = chat.render(conversation.messages[:i], add_generation_prompt=True)
        after = chat.render(conversation.messages[: i + 1])
        if not before.startswith(done) or not after.startswith(before):
            raise ValueError(f"{conversation.where}: the chat template rewrites earlier turns; train on single turns")
        asked, said = chat.encode(before[len(done) :]), chat.encode(after[len(before) :])
        stop = len(said) - said[::-1].index(end) if end in said else len(said)
        counts = i >= conversation.first_learned
        ids += asked + said
        learned += [False] * len(asked) + [counts] * stop + [False] * (len(said) - stop)
        done = after
    while learned and not learned[-1]:
        ids.pop()
        learned.pop()
    return Encoded(ids, learned)


def mixture_order(sizes: Sequence[int], weights: Sequence[float], count: int, seed: int) -> list[tuple[int, int]]:
    """`count` draws (source, row): sources by weight, each source's rows all once before any comes again.

    Raises ValueError for a weight that is not positive or a source without rows.
    """
    if len(sizes) != len(weights) or min(weights) <= 0 or min(sizes) < 1:
        raise ValueError(f"weights ({list(weights)}) must be positive, one for each of {len(sizes)} sources with rows")
    rng = np.random.default_rng(seed)
    sources = rng.choice(len(sizes), size=count, p=np.asarray(weights, float) / sum(weights))
    waiting: list[list[int]] = [[] for _ in sizes]
    order = []
    for source in sources.tolist():
        if not waiting[source]:
            waiting[source] = rng.permutation(sizes[source]).tolist()
        order.append((source, waiting[source].pop()))
    return order
