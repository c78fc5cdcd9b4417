"""Sources of texts for SFT: named, split by prompt, encoded and drawn as a mixture."""

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
    """A source, split into training texts and held-out texts for the perplexity."""

    name: str
    train: list[Conversation]
    held_out: list[Conversation]


def read_source(
    name: str,
    fraction: float,
    setting: str = "text.holdout_fraction",
    reader: RowReader | None = None,
) -> Source:
    """Read a problem family, a file or a hub data set, and split it by a hash of the prompt.

    The prompt of a chat is its first user message. `setting` names `fraction` in messages; `reader`
    counts the rows of files.

    Raises:
        ValueError: one side of the split is empty.
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
            f"{setting} ({fraction}) leaves {len(sides[False])} training and {len(sides[True])} "
            f"held-out texts of {name}, which begin with {num_prompts} different prompts: choose "
            "another, or give more prompts"
        )
    return Source(name, sides[False], sides[True])


def packed_logprobs(
    model: nn.Module,
    texts: Sequence[EncodedConversation],
    row_tokens: int,
    branches: bool = False,
    autocast: torch.dtype | None = None,
) -> tuple[Float[Tensor, "K"], Tensor]:
    """(log-probability of every token with loss, index of its text), several texts in a row.

    Models with sliding windows get one text in a row, prefix trees (`branches`) are one row.
    """
    device = next(model.parameters()).device
    pairs = [(text.ids, text.learned) for text in texts]
    packed = pack_texts(pairs, row_tokens, uses_full_attention(model), device, branches)
    rows = packed.rows
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        hidden = hidden_states(model, rows.tokens, rows.positions, rows.attention).flatten(0, 1)
        logprobs, _ = token_logprobs(output_head(model), hidden, rows.slots, packed.targets)
    return logprobs, packed.sequence


def count_loss_tokens(texts: Sequence[EncodedConversation]) -> int:
    """Number of tokens with loss; the first token of a text has no prediction and no loss."""
    return sum(sum(text.learned[1:]) for text in texts)


@torch.no_grad()
def cross_entropy(
    compute_logprobs: Callable[[Sequence[EncodedConversation]], tuple[Tensor, Tensor]],
    texts: Sequence[EncodedConversation],
    texts_per_pass: int,
    processes: Processes = SINGLE_PROCESS,
) -> float:
    """Mean cross-entropy (nats) per token with loss; `compute_logprobs` as `packed_logprobs`."""
    total = sum(
        -float(compute_logprobs(texts[i : i + texts_per_pass])[0].sum())
        for i in shard_rows(range(0, len(texts), texts_per_pass), processes)
    )
    return float(
        processes.reduce_sum(torch.tensor(total, dtype=torch.float64))
    ) / count_loss_tokens(texts)


def training_texts(sources: Sequence[Source]) -> list[str]:
    """All strings of the training texts, to train a tokenizer on."""
    conversations = [conversation for source in sources for conversation in source.train]
    contents = [
        message["content"] for conversation in conversations for message in conversation.messages
    ]
    return [*contents, *(conversation.text for conversation in conversations if conversation.text)]


@dataclass(frozen=True)
class TokenLimit:
    """The most tokens of a text, and the name of the limit in messages."""

    num_tokens: int
    name: str

    def within(self, context: int | None) -> TokenLimit:
        """The limit, or the positions of the model if they are fewer (None: unlimited)."""
        if context is None or context >= self.num_tokens:
            return self
        return TokenLimit(context, "the number of positions of the model")


def encode_conversations(
    chat: ChatFormat,
    source: str,
    conversations: Sequence[Conversation],
    limit: TokenLimit,
    reader: RowReader | None = None,
) -> list[EncodedConversation]:
    """Token ids of the conversations of a source.

    Conversations that the chat template refuses, or above the limit, are faulty rows of `reader`.

    Raises:
        ValueError: no conversation is left.
    """
    reader = reader or RowReader()
    texts: list[EncodedConversation] = []
    for conversation in conversations:
        try:
            encoded = encode_conversation(chat, conversation)
            if len(encoded.ids) > limit.num_tokens:
                raise ValueError(
                    f"{conversation.where}: takes {len(encoded.ids)} tokens, {limit.name} is "
                    f"{limit.num_tokens}: raise it, or shorten the text"
                )
        except ValueError as error:
            reader.skip_row(source, str(error))
        else:
            texts.append(encoded)
    if not texts:
        raise ValueError(
            f"{source}: none of {len(conversations)} texts fits "
            f"({limit.name} is {limit.num_tokens})"
        )
    return texts


def draw_mixture(
    train: Sequence[Sequence[EncodedConversation]],
    weights: Sequence[float] | None,
    count: int,
    seed: int,
) -> list[EncodedConversation]:
    """`count` texts of the sources, drawn by weight; at least one."""
    order = mixture_order(
        [len(texts) for texts in train], weights or [1.0] * len(train), max(count, 1), seed
    )
    return [train[source][row] for source, row in order]
