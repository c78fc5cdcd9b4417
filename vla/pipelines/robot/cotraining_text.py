"""Text co-training: conversations and plain texts learned beside demonstrations."""

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
from vla.sft.loop import Metrics
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

MAX_HELD_OUT_TEXTS = 256
"""Most held-out texts of a source in its perplexity."""


class TextCoTraining:
    """Tokenized texts: batches for training, and held-out texts for perplexity.

    The language model reads texts without images or state in front. Each step takes `batch_size`
    texts from all sources in turn. They are packed into rows of at most `row_tokens` tokens, and
    attention is masked between texts. `reader` counts skipped rows.

    Raises:
        ValueError: a source cannot be read, is too long for a row, or holds conversations while the
            tokenizer has no chat template.
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
        self.model = model
        self.batch_size = batch_size
        self.row_tokens = row_tokens
        self.processes = processes
        chat = ChatFormat(tokenizer)
        if tokenizer.chat_template is None:
            check_plain_texts(sources)
        limit = TokenLimit(row_tokens, "data.text_tokens")
        train = [
            encode_conversations(chat, source.name, source.train, limit, self.reader)
            for source in sources
        ]
        self.held_out = {
            source.name: encode_conversations(
                chat,
                source.name,
                evenly_spaced(source.held_out, MAX_HELD_OUT_TEXTS),
                limit,
                self.reader,
            )
            for source in sources
        }
        self.drawn = draw_mixture(train, None, num_steps * batch_size, seed)

    def batch(self, step: int) -> list[EncodedConversation]:
        """This process's share of the texts of a step."""
        texts = self.drawn[step * self.batch_size : (step + 1) * self.batch_size]
        return shard_rows(texts, self.processes)

    def loss(self, batch: Sequence[EncodedConversation]) -> tuple[Tensor, Metrics]:
        """Mean cross-entropy of the learned tokens (nats).

        With several processes, this one's part: the parts add up to the mean.
        """
        count = count_loss_tokens(batch)
        own_mean = -self.logprobs(batch)[0].sum() / max(count, 1)
        loss = own_mean * global_fraction(count, self.processes.reduce_sum)
        return loss, {"text_loss": float(loss.detach())}

    def logprobs(self, texts: Sequence[EncodedConversation]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the learned tokens, and the text of each."""
        return packed_logprobs(self.model.backbone.model, texts, self.row_tokens)

    @torch.no_grad()
    def perplexity(self) -> dict[str, float]:
        """Perplexity of the held-out texts by source."""
        self.model.eval()
        return {
            name: math.exp(cross_entropy(self.logprobs, texts, self.batch_size))
            for name, texts in self.held_out.items()
        }


def check_plain_texts(sources: Sequence[Source]) -> None:
    """Refuse conversations, which need a chat template.

    Raises:
        ValueError: a source holds conversations.
    """
    for source in sources:
        if any(not conversation.text for conversation in (*source.train, *source.held_out)):
            raise ValueError(
                f"data.texts: {source.name} holds conversations, and the model's tokenizer has no "
                "chat template: give plain texts (a column `text`), or an instruction-tuned model"
            )


def evenly_spaced[Value](values: Sequence[Value], count: int) -> list[Value]:
    """At most `count` of the values, evenly spaced."""
    chosen = np.linspace(0, len(values) - 1, min(count, len(values))).astype(int)
    return [values[i] for i in chosen]


def text_cotraining(
    config: RobotConfig, model: VisionLanguageModel, tokenizer: Any, processes: Processes
) -> TextCoTraining | None:
    """Read and tokenize the texts in `data.texts`; None where the list is empty."""
    data = config.data
    if not data.texts:
        return None
    reader = RowReader(data.on_bad_row, "data.on_bad_row")
    sources = [
        read_source(name, data.holdout_fraction, "data.holdout_fraction", reader)
        for name in data.texts
    ]
    return TextCoTraining(
        model,
        tokenizer,
        sources,
        data.text_batch_size,
        data.text_tokens,
        config.sft.num_steps,
        derive_seed(config.train.seed, "texts") % 2**32,
        processes,
        reader,
    )
