"""Supervised fine-tuning on conversations: mixtures by weight, packed rows, loss on what the
assistant says only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from torch import Tensor

from vla.config.text import TextConfig, TextSft
from vla.data.chat import ChatFormat
from vla.data.conversations import Encoded
from vla.data.messages import Message, as_text
from vla.data.rows import RowReader
from vla.decoding.sampling import Sampling
from vla.text.fit_stage import FitStage
from vla.text.fitting import FitSettings, fit
from vla.text.language_model import LanguageParts, load_language_parts
from vla.text.report import Pair, finish
from vla.text.sources import (
    Room,
    Source,
    cross_entropy,
    draw,
    encode_all,
    num_learned,
    packed_logprobs,
    read_source,
)
from vla.text.topics import say
from vla.train.distributed import same_weights
from vla.train.pieces import Pieces, kept
from vla.train.run import Run

NUM_SAMPLES, SAMPLE_TOKENS, SAMPLE_PROMPT_TOKENS = 8, 32, 512


def run_sft(config: TextConfig, run: Run) -> dict[str, Any]:
    """Learn the mixture; cross-entropy and perplexity of held-out texts before and after, by
    source."""
    settings, processes = config.text, run.processes
    assert isinstance(settings, TextSft)
    reader = RowReader(settings.on_bad_row)
    sources = [
        read_source(name, settings.holdout_fraction, reader=reader) for name in settings.sources
    ]
    with run.timer("load"):
        parts = load_language_parts(
            config.language_model, config.train, settings.system, words_of(sources)
        )
        room = Room(settings.row_tokens, "text.row_tokens").within(parts.context)
        train = [
            encode_all(parts.chat, source.name, source.train, room, reader) for source in sources
        ]
        held_out = [
            encode_all(parts.chat, source.name, source.held_out, room, reader) for source in sources
        ]
    reader.tell(run.progress.say)
    same_weights(parts.model, processes)
    num_texts = sum(map(len, train))
    fitting = FitSettings.of(settings.fit, num_texts)
    run.progress.say(
        f"{fitting.num_steps} steps see {num_texts} texts {fitting.epochs(num_texts):.3g} times"
    )

    def logprobs_of(texts: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        return packed_logprobs(
            parts.model, texts, settings.row_tokens, parts.by_branches, parts.autocast
        )

    def judged(pieces: Pieces) -> Judged:
        with run.timer("judge"):
            losses = {
                s.name: cross_entropy(logprobs_of, texts, fitting.micro_batch_size, processes)
                for s, texts in zip(sources, held_out, strict=True)
            }
        return Judged(losses, samples(parts, sources) if processes.is_main else [])

    before: Judged = kept(run, "before", Judged, judged)
    run.progress.say(f"before: perplexity {show(before.losses)} on held-out texts")
    seed = run.seed("mixture")
    drawn = draw(train, settings.weights, fitting.num_steps * fitting.batch_size, seed)
    with FitStage(run, "sft", fitting.num_steps) as stage:
        fit(
            parts.model,
            len(drawn),
            lambda rows: -logprobs_of([drawn[i] for i in rows])[0].sum(),
            lambda rows: float(num_learned([drawn[i] for i in rows])),
            fitting,
            seed,
            stage,
            processes=processes,
            threads=parts.threads,
        )
    after: Judged = kept(run, "after", Judged, judged)
    run.progress.say(f"after:  perplexity {show(after.losses)} on the same texts")
    results: dict[str, Any] = {
        name: {
            "perplexity before": math.exp(loss),
            "perplexity after": math.exp(after.losses[name]),
        }
        for name, loss in before.losses.items()
    }
    results["held-out texts"] = {
        s.name: len(texts) for s, texts in zip(sources, held_out, strict=True)
    }
    results |= {"epochs": fitting.epochs(num_texts), **reader.results()}
    pairs = [
        Pair(q, "", a, b, None, None)
        for (q, a), (_, b) in zip(before.said, after.said, strict=True)
    ]
    return finish(run, "Supervised fine-tuning", results, pairs, parts)


@dataclass(frozen=True)
class Judged:
    """Cross-entropy of the held-out texts by source, nats a token, and answers to a few held-out
    questions."""

    losses: dict[str, float]
    said: list[tuple[str, str]]


def words_of(sources: Sequence[Source]) -> list[str]:
    """Everything that stands in the training texts."""
    conversations = [conversation for source in sources for conversation in source.train]
    said = [
        message["content"] for conversation in conversations for message in conversation.messages
    ]
    return [*said, *(conversation.text for conversation in conversations if conversation.text)]


def show(losses: dict[str, float]) -> str:
    """Perplexities by source."""
    return ", ".join(f"{name} {math.exp(loss):.2f}" for name, loss in losses.items())


def samples(parts: LanguageParts, sources: Sequence[Source]) -> list[tuple[str, str]]:
    """Greedy answers to a few held-out questions that are not too long."""
    asked: dict[str, Sequence[Message]] = {}
    for conversation in (c for source in sources for c in source.held_out):
        before = list(
            takewhile(lambda message: message["role"] != "assistant", conversation.messages)
        )
        if before and is_short(parts.chat, before):
            asked[as_text(before)] = before
    questions = list(asked)
    picked = [
        questions[i]
        for i in np.linspace(0, len(questions) - 1, min(NUM_SAMPLES, len(questions))).astype(int)
    ]
    if not picked:
        return []
    policy = parts.policy(Sampling(), SAMPLE_TOKENS)
    said = say(
        policy, parts.chat, picked, 1, SAMPLE_PROMPT_TOKENS, greedy=True, asked=asked.__getitem__
    )
    return [(question, answers[0].text) for question, answers in zip(picked, said, strict=True)]


def is_short(chat: ChatFormat, messages: Sequence[Message]) -> bool:
    """Whether the template takes the messages and makes few enough tokens of them."""
    try:
        return len(chat.prompt(messages)) <= SAMPLE_PROMPT_TOKENS
    except ValueError:
        return False
