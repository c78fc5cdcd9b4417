"""Held-out texts of supervised fine-tuning: cross-entropy by source, and answers to a few of their
questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from torch import Tensor

from vla.data.chat import ChatFormat
from vla.data.conversations import EncodedConversation
from vla.data.messages import Message, messages_to_text
from vla.generation.sampling import Sampling
from vla.text.language_model import LanguageParts
from vla.text.prompts import sample_completions
from vla.text.sources import Source, cross_entropy
from vla.text.text_report import AnswerPair
from vla.training.distributed import Processes

NUM_SAMPLES = 8
SAMPLE_TOKENS = 32
SAMPLE_PROMPT_TOKENS = 512


@dataclass(frozen=True)
class TextEvaluation:
    """Cross-entropy of the held-out texts by source, nats a token, and greedy answers to a few
    held-out questions."""

    losses: dict[str, float]
    said: list[tuple[str, str]]

    def __str__(self) -> str:
        """Perplexities by source."""
        return ", ".join(f"{name} {math.exp(loss):.2f}" for name, loss in self.losses.items())


def evaluate_texts(
    parts: LanguageParts,
    sources: Sequence[Source],
    held_out: Sequence[Sequence[EncodedConversation]],
    logprobs_of: Callable[[Sequence[EncodedConversation]], tuple[Tensor, Tensor]],
    texts_per_pass: int,
    processes: Processes,
) -> TextEvaluation:
    """The evaluation of a model; the main process alone writes the answers."""
    losses = {
        source.name: cross_entropy(logprobs_of, texts, texts_per_pass, processes)
        for source, texts in zip(sources, held_out, strict=True)
    }
    return TextEvaluation(losses, sample_answers(parts, sources) if processes.is_main else [])


def pair_text_answers(before: TextEvaluation, after: TextEvaluation) -> list[AnswerPair]:
    """Answers to the same questions side by side."""
    return [
        AnswerPair(question, "", answer, later, None, None)
        for (question, answer), (_, later) in zip(before.said, after.said, strict=True)
    ]


def sample_answers(parts: LanguageParts, sources: Sequence[Source]) -> list[tuple[str, str]]:
    """Greedy answers to a few held-out questions that are not too long."""
    asked: dict[str, Sequence[Message]] = {}
    for conversation in (c for source in sources for c in source.held_out):
        before = list(
            takewhile(lambda message: message["role"] != "assistant", conversation.messages)
        )
        if before and is_short(parts.chat, before):
            asked[messages_to_text(before)] = before
    questions = list(asked)
    picked = [
        questions[i]
        for i in np.linspace(0, len(questions) - 1, min(NUM_SAMPLES, len(questions))).astype(int)
    ]
    if not picked:
        return []
    policy = parts.policy(Sampling(), SAMPLE_TOKENS)
    said = sample_completions(
        policy,
        parts.chat,
        picked,
        1,
        SAMPLE_PROMPT_TOKENS,
        greedy=True,
        messages_for=asked.__getitem__,
    )
    return [(question, answers[0].text) for question, answers in zip(picked, said, strict=True)]


def is_short(chat: ChatFormat, messages: Sequence[Message]) -> bool:
    """Whether the template takes the messages and makes few enough tokens of them."""
    try:
        return len(chat.prompt(messages)) <= SAMPLE_PROMPT_TOKENS
    except ValueError:
        return False
