"""Supervised fine-tuning on conversations: mixtures by weight, packed rows, loss on what the assistant says only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vla.config.text import TextConfig, TextSft
from vla.data.conversations import Encoded
from vla.decoding.sampling import Sampling
from vla.text.fitting import FitSettings, fit
from vla.text.language_model import LanguageParts, load_language_parts, save_language_model
from vla.text.report import Pair, spent, write_report
from vla.text.sources import Source, cross_entropy, draw, encode_all, num_learned, packed_logprobs, read_source
from vla.text.topics import say
from vla.train.distributed import ALONE, Processes, same_weights
from vla.train.metrics import open_log
from vla.train.progress import Progress
from vla.train.run_folder import RunFolder
from vla.train.seed import derive_seed
from vla.train.timing import Timer

NUM_SAMPLES, SAMPLE_TOKENS, SAMPLE_PROMPT_TOKENS = 8, 32, 512


def run_sft(config: TextConfig, folder: RunFolder, progress: Progress, processes: Processes = ALONE) -> dict[str, Any]:
    """Learn the mixture; cross-entropy and perplexity of held-out texts before and after, by source."""
    settings = config.text
    assert isinstance(settings, TextSft)
    if config.resume:
        raise ValueError(f"resume ({config.resume}): text=sft cannot be resumed, start it anew")
    sources = [read_source(name, settings.holdout_fraction) for name in settings.sources]
    timer, log = Timer(), open_log(folder.path, 0, config.train, processes.is_main)
    with timer("load"):
        texts = [m["content"] for s in sources for c in s.train for m in c.messages]
        texts += [c.text for s in sources for c in s.train if c.text]
        parts = load_language_parts(config.language_model, config.train, settings.system, texts)
        train = [encode_all(parts.chat, source.train, settings.row_tokens) for source in sources]
        held_out = [encode_all(parts.chat, source.held_out, settings.row_tokens) for source in sources]
    same_weights(parts.model, processes)
    fitting = FitSettings(**settings.fit.model_dump())

    def logprobs_of(texts: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        return packed_logprobs(parts.model, texts, settings.row_tokens, parts.by_branches, parts.autocast)

    def losses() -> dict[str, float]:
        with timer("judge"):
            return {
                s.name: cross_entropy(logprobs_of, texts, fitting.micro_batch_size, processes)
                for s, texts in zip(sources, held_out, strict=True)
            }

    before, said = losses(), samples(parts, sources) if processes.is_main else []
    progress.say(f"before: perplexity {show(before)} on held-out texts")
    seed = derive_seed(config.train.seed, "mixture")
    drawn = draw(train, settings.weights, fitting.num_steps * fitting.batch_size, seed)
    with timer("fit"), progress.stage("sft", fitting.num_steps) as stage:

        def on_step(step: int, loss: float) -> None:
            log.write("sft", step, {"loss": loss})
            stage.advance(loss=loss)

        fit(
            parts.model, len(drawn), lambda rows: -logprobs_of([drawn[i] for i in rows])[0].sum(),
            lambda rows: float(num_learned([drawn[i] for i in rows])), fitting, seed, on_step,
            processes=processes, threads=parts.threads,
        )  # fmt: skip
    after = losses()
    progress.say(f"after:  perplexity {show(after)} on the same texts")
    log.close()
    if not processes.is_main:
        return {}
    results: dict[str, Any] = {
        name: {"perplexity before": math.exp(before[name]), "perplexity after": math.exp(after[name])}
        for name in before
    }
    results |= {"held-out texts": {s.name: len(s.held_out) for s in sources}, **spent(timer)}
    folder.write_results(results)
    pairs = [Pair(q, "", a, b, None, None) for (q, a), (_, b) in zip(said, samples(parts, sources), strict=True)]
    write_report(folder, "Supervised fine-tuning", results, pairs)
    save_language_model(parts, folder.path / "model")
    return results


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
