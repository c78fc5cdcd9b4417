"""Conversations for supervised fine-tuning, as token ids with a loss mask.

Sources are files or hub data sets with the columns of TRL and `datasets`:

    messages              [{"role": ..., "content": ...}, ...]; every assistant turn carries loss
    conversations         the same; also [{"from": "human" | "gpt" | ..., "value": ...}, ...]
    prompt, completion    texts, or lists of messages; the completion carries loss
    text                  plain text; all of it carries loss
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla.data.chat import ChatFormat
from vla.data.messages import (
    Message,
    add_system_message,
    normalize_for_split,
    parse_messages,
    prompt_key,
)
from vla.data.rows import Row, RowReader


@dataclass(frozen=True)
class Conversation:
    """Messages, trained on in the assistant's turns from `first_learned` on; or plain text, trained
    on as a whole."""

    messages: tuple[Message, ...]
    text: str | None
    first_learned: int
    where: str

    @property
    def key(self) -> str:
        """The key by which splits assign a conversation: its prompt, its first user message, or its
        text."""
        if self.text is not None:
            return normalize_for_split(self.text)
        if self.first_learned:
            return prompt_key(self.messages[: self.first_learned])
        return prompt_key(
            [next((m for m in self.messages if m["role"] == "user"), self.messages[0])]
        )


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids; `learned[i]` marks the tokens that carry loss, each predicted from its prefix."""

    ids: list[int]
    learned: list[bool]


def read_conversations(source: str, reader: RowReader | None = None) -> list[Conversation]:
    """All conversations of a source.

    Raises ValueError with the row and the column at fault, and when there are no rows.
    """
    reader = reader or RowReader()
    conversations = reader.read(source, parse_conversation)
    reader.report_repeats(
        source,
        [(c.text, tuple((m["role"], m["content"]) for m in c.messages)) for c in conversations],
    )
    return conversations


def parse_conversation(row: Row) -> Conversation:
    """A conversation from a row with `messages` (or `conversations`), `prompt` and `completion`, or
    `text`."""
    values = row.values
    where = row.where
    column = next((name for name in ("messages", "conversations") if name in values), None)
    if column is not None:
        messages = add_system_message(
            parse_messages(values[column], "user", where, column), values, where
        )
        return _require_assistant_turn(Conversation(tuple(messages), None, 0, where), column)
    if "prompt" in values and "completion" in values:
        prompt = add_system_message(
            parse_messages(values["prompt"], "user", where, "prompt"), values, where
        )
        completion = parse_messages(values["completion"], "assistant", where, "completion")
        return _require_assistant_turn(
            Conversation((*prompt, *completion), None, len(prompt), where), "completion"
        )
    if isinstance(values.get("text"), str) and values["text"].strip():
        return Conversation((), values["text"], 0, where)
    raise ValueError(
        f"{where}: has the columns {', '.join(values) or 'none'}; needed are messages, or prompt "
        "and completion, or"
        " text, with something in them"
    )


def _require_assistant_turn(conversation: Conversation, column: str) -> Conversation:
    learned = conversation.messages[conversation.first_learned :]
    if not any(message["role"] == "assistant" for message in learned):
        raise ValueError(
            f"{conversation.where}: {column} hold no assistant turn, so there is nothing to learn"
        )
    return conversation


def encode_conversation(chat: ChatFormat, conversation: Conversation) -> EncodedConversation:
    """Ids by the chat template; the loss covers each assistant turn from its first to its
    end-of-turn token.

    The text before an assistant turn is tokenized separately, as it is during generation, so
    training and generation share their ids. Raises ValueError with the row for a template that
    rewrites earlier turns or refuses the messages.
    """
    if conversation.text is not None:
        ids = chat.plain_text(conversation.text)
        return EncodedConversation(ids, [True] * len(ids))
    try:
        return _encode_turns(chat, conversation)
    except ValueError as error:
        raise ValueError(f"{conversation.where}: {error}") from None


def _encode_turns(chat: ChatFormat, conversation: Conversation) -> EncodedConversation:
    ids = list[int]()
    learned = list[bool]()
    rendered = ""
    messages = conversation.messages
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = chat.render(messages[:i], add_generation_prompt=True)
        after = chat.render(messages[: i + 1])
        if not before.startswith(rendered):
            raise ValueError("the chat template rewrites earlier turns; train on single turns")
        prompt_ids = chat.encode(before[len(rendered) :])
        turn_ids = chat.turn(before, after)
        answer_ids = chat.encode(after[len(before) :])
        rest = answer_ids[len(turn_ids) :] if answer_ids[: len(turn_ids)] == turn_ids else []
        ids += [*prompt_ids, *turn_ids, *rest]
        learned += (
            [False] * len(prompt_ids)
            + [i >= conversation.first_learned] * len(turn_ids)
            + [False] * len(rest)
        )
        rendered = after
    while learned and not learned[-1]:
        ids.pop()
        learned.pop()
    return EncodedConversation(ids, learned)


def mixture_order(
    sizes: Sequence[int], weights: Sequence[float], count: int, seed: int
) -> list[tuple[int, int]]:
    """`count` draws (source, row): sources by weight, and every row of a source once before any
    repeats.

    Raises ValueError for a weight that is not positive or a source without rows.
    """
    if len(sizes) != len(weights) or min(weights) <= 0 or min(sizes) < 1:
        raise ValueError(
            f"weights ({list(weights)}) must be positive, one for each of {len(sizes)} sources "
            "with rows"
        )
    rng = np.random.default_rng(seed)
    sources = rng.choice(len(sizes), size=count, p=np.asarray(weights, float) / sum(weights))
    waiting: list[list[int]] = [[] for _ in sizes]
    order = []
    for source in sources.tolist():
        if not waiting[source]:
            waiting[source] = rng.permutation(sizes[source]).tolist()
        order.append((source, waiting[source].pop()))
    return order
