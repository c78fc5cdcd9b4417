"""Evaluation of text SFT on held-out texts: cross-entropy by source, and sample answers."""

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
"""Questions that are answered."""
SAMPLE_TOKENS = 32
"""Most tokens of an answer."""
SAMPLE_PROMPT_TOKENS = 512
"""Longer prompts are not answered."""


@dataclass(frozen=True)
class TextEvaluation:
    """Cross-entropy of held-out texts by source (nats a token), and greedy answers.

    `said` holds (question, answer) of a few held-out questions.
    """

    losses: dict[str, float]
    said: list[tuple[str, str]]

    def __str__(self) -> str:
        """Perplexities by source."""
        return ", ".join(f"{name} {math.exp(loss):.2f}" for name, loss in self.losses.items())


def evaluate_texts(
    parts: LanguageParts,
    sources: Sequence[Source],
    held_out: Sequence[Sequence[EncodedConversation]],
    compute_logprobs: Callable[[Sequence[EncodedConversation]], tuple[Tensor, Tensor]],
    texts_per_pass: int,
    processes: Processes,
) -> TextEvaluation:
    """Evaluate a model; only the main process samples answers."""
    losses = {
        source.name: cross_entropy(compute_logprobs, texts, texts_per_pass, processes)
        for source, texts in zip(sources, held_out, strict=True)
    }
    return TextEvaluation(losses, sample_answers(parts, sources) if processes.is_main else [])


def pair_text_answers(before: TextEvaluation, after: TextEvaluation) -> list[AnswerPair]:
    """Pairs of answers to the same questions."""
    return [
        AnswerPair(question, "", answer, later, None, None)
        for (question, answer), (_, later) in zip(before.said, after.said, strict=True)
    ]


def sample_answers(parts: LanguageParts, sources: Sequence[Source]) -> list[tuple[str, str]]:
    """(question, greedy answer) of a few held-out questions with short prompts."""
    prompts: dict[str, Sequence[Message]] = {}
    for conversation in (c for source in sources for c in source.held_out):
        before = list(
            takewhile(lambda message: message["role"] != "assistant", conversation.messages)
        )
        if before and is_short(parts.chat, before):
            prompts[messages_to_text(before)] = before
    questions = list(prompts)
    # evenly spaced over all sources
    picked = [
        questions[i]
        for i in np.linspace(0, len(questions) - 1, min(NUM_SAMPLES, len(questions))).astype(int)
    ]
    if not picked:
        return []
    policy = parts.policy(Sampling(), SAMPLE_TOKENS)
    answers = sample_completions(
        policy,
        parts.chat,
        picked,
        1,
        SAMPLE_PROMPT_TOKENS,
        greedy=True,
        messages_for=prompts.__getitem__,
    )
    return [
        (question, completions[0].text)
        for question, completions in zip(picked, answers, strict=True)
    ]


def is_short(chat: ChatFormat, messages: Sequence[Message]) -> bool:
    """True where the template accepts the messages in at most `SAMPLE_PROMPT_TOKENS`."""
    try:
        return len(chat.prompt(messages)) <= SAMPLE_PROMPT_TOKENS
    except ValueError:
        return False
