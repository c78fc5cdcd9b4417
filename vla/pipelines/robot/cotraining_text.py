"""Conversations and plain texts beside demonstrations: a robot's language model goes on learning,
or keeps, them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla.config.robot import RobotConfig
from vla.data.chat import ChatFormat
from vla.data.conversations import EncodedConversation
from vla.data.rows import RowReader
from vla.models.vlm import VisionLanguageModel
from vla.sft.losses import global_fraction
from vla.text.sources import (
    Source,
    TokenLimit,
    count_loss_tokens,
    cross_entropy,
    draw_mixture,
    encode_conversations,
    packed_logprobs,
    read_source,
)
from vla.training.distributed import SINGLE_PROCESS, Processes, shard_rows
from vla.training.seed import derive_seed

MOST_JUDGED = 256
"""Held-out texts of a source that its perplexity is taken of."""


class TextCoTraining:
    """Sources of texts, read and tokenized once: batches to learn, and held-out ones to judge by.

    The language model reads them without a picture or a state before them. `batch_size` texts a
    step are drawn by turns from all sources and packed into rows of at most `row_tokens`, blind to
    each other. `reader` counts the rows that were left out.

    Raises ValueError naming the source that cannot be read, is too long for a row, or holds
    conversations that the model's tokenizer has no template for.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        tokenizer: Any,
        sources: Sequence[Source],
        batch_size: int,
        row_tokens: int,
        num_steps: int,
        seed: int,
        processes: Processes = SINGLE_PROCESS,
        reader: RowReader | None = None,
    ):
        self.reader = reader or RowReader(setting="data.on_bad_row")
        self.model, self.batch_size, self.row_tokens, self.processes = (
            model,
            batch_size,
            row_tokens,
            processes,
        )
        chat = ChatFormat(tokenizer)
        if tokenizer.chat_template is None:
            for source in sources:
                if any(not conversation.text for conversation in (*source.train, *source.held_out)):
                    raise ValueError(
                        f"data.texts: {source.name} holds conversations, and the model's tokenizer has no chat "
                        "template: give plain texts (a column `text`), or an instruction-tuned model"
                    )
        room = TokenLimit(row_tokens, "data.text_tokens")
        train = [
            encode_conversations(chat, source.name, source.train, room, self.reader)
            for source in sources
        ]
        self.held_out = {
            source.name: encode_conversations(
                chat, source.name, evenly_spaced(source.held_out, MOST_JUDGED), room, self.reader
            )
            for source in sources
        }
        self.drawn = draw_mixture(train, None, num_steps * batch_size, seed)

    def batch(self, step: int) -> list[EncodedConversation]:
        """The texts of a step; of many processes, this one's share of them."""
        return shard_rows(
            self.drawn[step * self.batch_size : (step + 1) * self.batch_size], self.processes
        )

    def loss(self, batch: Sequence[EncodedConversation]) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the learned tokens, nats each; of many processes, this one's part of
        it."""
        count = count_loss_tokens(batch)
        loss = (
            -self.logprobs(batch)[0].sum()
            / max(count, 1)
            * global_fraction(count, self.processes.reduce_sum)
        )
        return loss, {"text_loss": float(loss.detach())}

    def logprobs(self, texts: Sequence[EncodedConversation]) -> tuple[Tensor, Tensor]:
        return packed_logprobs(self.model.backbone.model, texts, self.row_tokens)

    @torch.no_grad()
    def perplexity(self) -> dict[str, float]:
        """Of the held-out texts, by source."""
        self.model.eval()
        return {
            name: math.exp(cross_entropy(self.logprobs, texts, self.batch_size))
            for name, texts in self.held_out.items()
        }


def evenly_spaced(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the values, evenly spaced."""
    chosen = np.linspace(0, len(values) - 1, min(count, len(values))).astype(int)
    return [values[i] for i in chosen]


def text_cotraining(
    config: RobotConfig, model: VisionLanguageModel, tokenizer: Any, processes: Processes
) -> TextCoTraining | None:
    """The texts that `data.texts` names; None where it names none."""
    data = config.data
    if not data.texts:
        return None
    reader = RowReader(data.on_bad_row, "data.on_bad_row")
    sources = [
        read_source(name, data.holdout_fraction, "data.holdout_fraction", reader)
        for name in data.texts
    ]
    seed = derive_seed(config.train.seed, "texts") % 2**32
    steps = config.sft.num_steps
    return TextCoTraining(
        model,
        tokenizer,
        sources,
        data.text_batch_size,
        data.text_tokens,
        steps,
        seed,
        processes,
        reader,
    )
