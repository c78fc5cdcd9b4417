"""Texts that a language model learns from or is judged by: sources by name, split, as token ids, in
a mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla.data.chat import ChatFormat
from vla.data.conversations import (
    Conversation,
    EncodedConversation,
    encode_conversation,
    mixture_order,
    read_conversations,
)
from vla.data.messages import user_message
from vla.data.prefix_tree import pack_texts
from vla.data.rows import RowReader
from vla.generation.hf_decoder import hidden_states, output_head, uses_full_attention
from vla.generation.logprobs import token_logprobs
from vla.text.hash_split import is_held_out
from vla.text.problem_families import ARITHMETIC, GYM_PREFIX, WORD_FAMILIES, make_family
from vla.training.distributed import SINGLE_PROCESS, Processes, shard_rows


@dataclass(frozen=True)
class Source:
    """One source, split: texts to learn, and texts for the perplexity that is reported."""

    name: str
    train: list[Conversation]
    held_out: list[Conversation]


def read_source(
    name: str,
    fraction: float,
    setting: str = "text.holdout_fraction",
    reader: RowReader | None = None,
) -> Source:
    """A problem family by name, or a file or hub data set; the split is by a hash of the prompt,
    for a chat of its first user message. `setting` is what people call `fraction`; `reader` counts
    the rows of files.

    Raises ValueError when one side of the split is empty.
    """
    if ARITHMETIC.fullmatch(name) or name in WORD_FAMILIES or name.startswith(GYM_PREFIX):
        conversations = [
            Conversation(
                (*user_message(p.question), {"role": "assistant", "content": p.answer}),
                None,
                1,
                name,
            )
            for p in make_family(name, None)
        ]
    else:
        conversations = read_conversations(name, reader)
    sides: dict[bool, list[Conversation]] = {True: [], False: []}
    for conversation in conversations:
        sides[is_held_out(conversation.key, fraction)].append(conversation)
    if not sides[True] or not sides[False]:
        num_prompts = len({conversation.key for conversation in conversations})
        raise ValueError(
            f"{setting} ({fraction}) leaves {len(sides[False])} training and {len(sides[True])} held-out texts of"
            f" {name}, which begin with {num_prompts} different prompts: choose another, or give more prompts"
        )
    return Source(name, sides[False], sides[True])


def packed_logprobs(
    model: nn.Module,
    texts: Sequence[EncodedConversation],
    row_tokens: int,
    branches: bool = False,
    autocast: torch.dtype | None = None,
) -> tuple[Float[Tensor, "K"], Tensor]:
    """(log-probability of every learned token, number of its text), several texts a row; a row each
    for models with sliding windows; one row for those that go along `branches`.
    """
    device, pairs = next(model.parameters()).device, [(text.ids, text.learned) for text in texts]
    packed = pack_texts(pairs, row_tokens, uses_full_attention(model), device, branches)
    rows = packed.rows
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        hidden = hidden_states(model, rows.tokens, rows.positions, rows.attention).flatten(0, 1)
        logprobs, _ = token_logprobs(output_head(model), hidden, rows.slots, packed.targets)
    return logprobs, packed.sequence


def count_loss_tokens(texts: Sequence[EncodedConversation]) -> int:
    """Tokens that carry loss; the first token of a text is predicted from nothing and carries
    none."""
    return sum(sum(text.learned[1:]) for text in texts)


@torch.no_grad()
def cross_entropy(
    logprobs_of: Callable[[Sequence[EncodedConversation]], tuple[Tensor, Tensor]],
    texts: Sequence[EncodedConversation],
    at_once: int,
    processes: Processes = SINGLE_PROCESS,
) -> float:
    """Nats per learned token; `logprobs_of` gives what `packed_logprobs` does."""
    total = sum(
        -float(logprobs_of(texts[i : i + at_once])[0].sum())
        for i in shard_rows(range(0, len(texts), at_once), processes)
    )
    return float(
        processes.reduce_sum(torch.tensor(total, dtype=torch.float64))
    ) / count_loss_tokens(texts)


def training_texts(sources: Sequence[Source]) -> list[str]:
    """Everything that stands in the training texts, for a vocabulary."""
    conversations = [conversation for source in sources for conversation in source.train]
    said = [
        message["content"] for conversation in conversations for message in conversation.messages
    ]
    return [*said, *(conversation.text for conversation in conversations if conversation.text)]


@dataclass(frozen=True)
class TokenLimit:
    """The most tokens that a text may take, and what people call that number."""

    num_tokens: int
    name: str

    def within(self, context: int | None) -> TokenLimit:
        """No more than the model has positions for; None: it has any number of them."""
        if context is None or context >= self.num_tokens:
            return self
        return TokenLimit(context, "the number of positions of the model")


def encode_conversations(
    chat: ChatFormat,
    source: str,
    conversations: Sequence[Conversation],
    room: TokenLimit,
    reader: RowReader | None = None,
) -> list[EncodedConversation]:
    """Token ids of conversations of a source; those that the template refuses, or that are too
    long, are rows that cannot be used.

    Raises ValueError naming the first of them, and where none is left.
    """
    reader, found = reader or RowReader(), list[EncodedConversation]()
    for conversation in conversations:
        try:
            encoded = encode_conversation(chat, conversation)
            if len(encoded.ids) > room.num_tokens:
                raise ValueError(
                    f"{conversation.where}: takes {len(encoded.ids)} tokens, {room.name} is {room.num_tokens}: raise"
                    " it, or shorten the text"
                )
        except ValueError as error:
            reader.skip_row(source, str(error))
        else:
            found.append(encoded)
    if not found:
        raise ValueError(
            f"{source}: none of {len(conversations)} texts fits ({room.name} is {room.num_tokens})"
        )
    return found


def draw_mixture(
    train: Sequence[Sequence[EncodedConversation]],
    weights: Sequence[float] | None,
    count: int,
    seed: int,
) -> list[EncodedConversation]:
    """`count` texts of the sources, by weight; at least one."""
    order = mixture_order(
        [len(texts) for texts in train], weights or [1.0] * len(train), max(count, 1), seed
    )
    return [train[source][row] for source, row in order]
