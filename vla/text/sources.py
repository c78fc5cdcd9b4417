"""Texts that a language model learns from or is judged by: sources by name, split, as token ids, in a mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla.data.chat import ChatFormat
from vla.data.conversations import Conversation, Encoded, encode, mixture_order, read_conversations
from vla.data.packing import pack_texts
from vla.decoding.causal import attends_fully, hidden_states, output_head
from vla.decoding.logprobs import token_logprobs
from vla.text.problems import ARITHMETIC, GYM, WORD_FAMILIES, is_held_out, make_family
from vla.train.distributed import ALONE, Processes, own_share


@dataclass(frozen=True)
class Source:
    """One source, split: texts to learn, and texts for the perplexity that is reported."""

    name: str
    train: list[Conversation]
    held_out: list[Conversation]


def read_source(name: str, fraction: float, setting: str = "text.holdout_fraction") -> Source:
    """A problem family by name, or a file or hub data set; the split is by a hash of what is said first. `setting` is
    what people call `fraction`.

    Raises ValueError when one side of the split is empty.
    """
    if ARITHMETIC.fullmatch(name) or name in WORD_FAMILIES or name.startswith(GYM):
        conversations = [
            Conversation(
                ({"role": "user", "content": p.question}, {"role": "assistant", "content": p.answer}), None, 1, name
            )
            for p in make_family(name, None)
        ]
    else:
        conversations = read_conversations(name)
    sides: dict[bool, list[Conversation]] = {True: [], False: []}
    for conversation in conversations:
        first = conversation.text or conversation.messages[0]["content"]
        sides[is_held_out(first, fraction)].append(conversation)
    if not sides[True] or not sides[False]:
        raise ValueError(
            f"{setting} ({fraction}) leaves {len(sides[False])} training and {len(sides[True])} held-out"
            f" texts of {name}: choose another, or give more texts"
        )
    return Source(name, sides[False], sides[True])


def packed_logprobs(
    model: nn.Module,
    texts: Sequence[Encoded],
    row_tokens: int,
    branches: bool = False,
    autocast: torch.dtype | None = None,
) -> tuple[Float[Tensor, "K"], Tensor]:
    """(log-probability of every learned token, number of its text), several texts a row; a row each for models with
    sliding windows; one row for those that go along `branches`.
    """
    device, pairs = next(model.parameters()).device, [(text.ids, text.learned) for text in texts]
    packed = pack_texts(pairs, row_tokens, attends_fully(model), device, branches)
    rows = packed.rows
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        hidden = hidden_states(model, rows.tokens, rows.positions, rows.attention).flatten(0, 1)
        logprobs, _ = token_logprobs(output_head(model), hidden, rows.slots, packed.targets)
    return logprobs, packed.sequence


def num_learned(texts: Sequence[Encoded]) -> int:
    """Tokens that carry loss; the first token of a text is predicted from nothing and carries none."""
    return sum(sum(text.learned[1:]) for text in texts)


@torch.no_grad()
def cross_entropy(
    logprobs_of: Callable[[Sequence[Encoded]], tuple[Tensor, Tensor]],
    texts: Sequence[Encoded],
    at_once: int,
    processes: Processes = ALONE,
) -> float:
    """Nats per learned token; `logprobs_of` gives what `packed_logprobs` does."""
    total = sum(
        -float(logprobs_of(texts[i : i + at_once])[0].sum())
        for i in own_share(range(0, len(texts), at_once), processes)
    )
    return float(processes.reduce_sum(torch.tensor(total, dtype=torch.float64))) / num_learned(texts)


def encode_all(
    chat: ChatFormat, conversations: Sequence[Conversation], row_tokens: int, setting: str = "text.row_tokens"
) -> list[Encoded]:
    """Token ids of all conversations. `setting` is what people call `row_tokens`.

    Raises ValueError naming the first that is longer than a row.
    """
    encoded = [encode(chat, conversation) for conversation in conversations]
    for conversation, text in zip(conversations, encoded, strict=True):
        if len(text.ids) > row_tokens:
            raise ValueError(f"{conversation.where}: takes {len(text.ids)} tokens, {setting} is {row_tokens}: raise it")
    return encoded


def draw(train: Sequence[Sequence[Encoded]], weights: Sequence[float] | None, count: int, seed: int) -> list[Encoded]:
    """`count` texts of the sources, by weight; at least one."""
    order = mixture_order([len(texts) for texts in train], weights or [1.0] * len(train), max(count, 1), seed)
    return [train[source][row] for source, row in order]
