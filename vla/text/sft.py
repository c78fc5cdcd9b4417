"""Supervised fine-tuning on conversations: mixtures by weight, packed rows, loss on what the assistant says only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vla.config.text import TextConfig, TextSft
from vla.data.conversations import Encoded
from vla.decoding.sampling import Sampling
from vla.text.fit_stage import FitStage
from vla.text.fitting import FitSettings, fit
from vla.text.language_model import LanguageParts, load_language_parts
from vla.text.report import Pair, finish
from vla.text.sources import Source, cross_entropy, draw, encode_all, num_learned, packed_logprobs, read_source
from vla.text.topics import say
from vla.train.distributed import same_weights
from vla.train.run import Run

NUM_SAMPLES, SAMPLE_TOKENS, SAMPLE_PROMPT_TOKENS = 8, 32, 512


def run_sft(config: TextConfig, run: Run) -> dict[str, Any]:
    """Learn the mixture; cross-entropy and perplexity of held-out texts before and after, by source."""
    settings, processes = config.text, run.processes
    assert isinstance(settings, TextSft)
    sources = [read_source(name, settings.holdout_fraction) for name in settings.sources]
    with run.timer("load"):
        texts = [m["content"] for s in sources for c in s.train for m in c.messages]
        texts += [c.text for s in sources for c in s.train if c.text]
        parts = load_language_parts(config.language_model, config.train, settings.system, texts)
        train = [encode_all(parts.chat, source.train, settings.row_tokens) for source in sources]
        held_out = [encode_all(parts.chat, source.held_out, settings.row_tokens) for source in sources]
    same_weights(parts.model, processes)
    fitting = FitSettings(**settings.fit.model_dump())

    def logprobs_of(texts: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        return packed_logprobs(parts.model, texts, settings.row_tokens, parts.by_branches, parts.autocast)

    def judged() -> Judged:
        with run.timer("judge"):
            losses = {
                s.name: cross_entropy(logprobs_of, texts, fitting.micro_batch_size, processes)
                for s, texts in zip(sources, held_out, strict=True)
            }
        return Judged(losses, samples(parts, sources) if processes.is_main else [])

    before: Judged = run.kept("before", Judged, judged)
    run.progress.say(f"before: perplexity {show(before.losses)} on held-out texts")
    seed = run.seed("mixture")
    drawn = draw(train, settings.weights, fitting.num_steps * fitting.batch_size, seed)
    with FitStage(run, "sft", fitting.num_steps) as stage:
        fit(
            parts.model, len(drawn), lambda rows: -logprobs_of([drawn[i] for i in rows])[0].sum(),
            lambda rows: float(num_learned([drawn[i] for i in rows])), fitting, seed, stage,
            processes=processes, threads=parts.threads,
        )  # fmt: skip
    after: Judged = run.kept("after", Judged, judged)
    run.progress.say(f"after:  perplexity {show(after.losses)} on the same texts")
    results: dict[str, Any] = {
        name: {"perplexity before": math.exp(loss), "perplexity after": math.exp(after.losses[name])}
        for name, loss in before.losses.items()
    }
    results["held-out texts"] = {s.name: len(s.held_out) for s in sources}
    pairs = [Pair(q, "", a, b, None, None) for (q, a), (_, b) in zip(before.said, after.said, strict=True)]
    return finish(run, "Supervised fine-tuning", results, pairs, parts)


@dataclass(frozen=True)
class Judged:
    """Cross-entropy of the held-out texts by source, nats a token, and answers to a few held-out questions."""

    losses: dict[str, float]
    said: list[tuple[str, str]]


def show(losses: dict[str, float]) -> str:
    """Perplexities by source."""
    return ", ".join(f"{name} {math.exp(loss):.2f}" for name, loss in losses.items())


def samples(parts: LanguageParts, sources: Sequence[Source]) -> list[tuple[str, str]]:
    """Greedy answers to a few held-out questions."""
    questions = [
        c.messages[0]["content"]
        for source in sources
        for c in source.held_out
        if c.messages and c.messages[0]["role"] == "user"
    ]
    picked = [questions[i] for i in np.linspace(0, len(questions) - 1, min(NUM_SAMPLES, len(questions))).astype(int)]
    if not picked:
        return []
    policy = parts.policy(Sampling(), SAMPLE_TOKENS)
    said = say(policy, parts.chat, picked, 1, SAMPLE_PROMPT_TOKENS, greedy=True)
    return [(question, answers[0].text) for question, answers in zip(picked, said, strict=True)]
