"""Supervised fine-tuning on conversations: mixtures by weight, packed rows, loss on what the assistant says only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vla.config.text import TextConfig, TextSft
from vla.data.chat import ChatFormat
from vla.data.conversations import Conversation, Encoded, encode, mixture_order, read_conversations
from vla.data.packing import pack_texts
from vla.decoding.causal import attends_fully, hidden_states, output_head
from vla.decoding.logprobs import token_logprobs
from vla.decoding.sampling import Sampling
from vla.text.fitting import FitSettings, fit
from vla.text.language_model import LanguageParts, load_language_parts, save_language_model
from vla.text.problems import ARITHMETIC, GYM, WORD_FAMILIES, is_held_out, make_family
from vla.text.report import Pair, spent, write_report
from vla.text.topics import say
from vla.train.distributed import ALONE, Processes, own_share, same_weights
from vla.train.metrics import open_log
from vla.train.progress import Progress
from vla.train.run_folder import RunFolder
from vla.train.seed import derive_seed
from vla.train.timing import Timer

FAMILY_PROBLEMS = 2000
NUM_SAMPLES, SAMPLE_TOKENS, SAMPLE_PROMPT_TOKENS = 8, 32, 512


@dataclass(frozen=True)
class Source:
    """One source, split: texts to learn, and texts for the perplexity that is reported."""

    name: str
    train: list[Conversation]
    held_out: list[Conversation]


def read_source(name: str, fraction: float) -> Source:
    """A problem family by name, or a file or hub data set; the split is by a hash of what is said first.

    Raises ValueError when one side of the split is empty.
    """
    if ARITHMETIC.fullmatch(name) or name in WORD_FAMILIES or name.startswith(GYM):
        conversations = [
            Conversation(
                ({"role": "user", "content": p.question}, {"role": "assistant", "content": p.answer}), None, 1, name
            )
            for p in make_family(name, FAMILY_PROBLEMS)
        ]
    else:
        conversations = read_conversations(name)
    sides: dict[bool, list[Conversation]] = {True: [], False: []}
    for conversation in conversations:
        first = conversation.text or conversation.messages[0]["content"]
        sides[is_held_out(first, fraction)].append(conversation)
    if not sides[True] or not sides[False]:
        raise ValueError(
            f"text.holdout_fraction ({fraction}) leaves {len(sides[False])} training and {len(sides[True])} held-out"
            f" texts of {name}: choose another, or give more texts"
        )
    return Source(name, sides[False], sides[True])


def packed_logprobs(
    parts: LanguageParts, texts: Sequence[Encoded], row_tokens: int
) -> tuple[Float[Tensor, "K"], Tensor]:
    """(log-probability of every learned token, number of its text), several texts a row; a row each for models with
    sliding windows.
    """
    pairs = [(text.ids, text.learned) for text in texts]
    packed = pack_texts(pairs, row_tokens, attends_fully(parts.model), parts.device, parts.by_branches)
    rows = packed.rows
    with torch.autocast(parts.device.type, parts.autocast, enabled=parts.autocast is not None):
        hidden = hidden_states(parts.model, rows.tokens, rows.positions, rows.attention).flatten(0, 1)
        logprobs, _ = token_logprobs(output_head(parts.model), hidden, rows.slots, packed.targets)
    return logprobs, packed.sequence


def num_learned(texts: Sequence[Encoded]) -> int:
    """Tokens that carry loss; the first token of a text is predicted from nothing and carries none."""
    return sum(sum(text.learned[1:]) for text in texts)


@torch.no_grad()
def cross_entropy(
    parts: LanguageParts, texts: Sequence[Encoded], row_tokens: int, at_once: int, processes: Processes = ALONE
) -> float:
    """Nats per learned token."""
    total = sum(
        -float(packed_logprobs(parts, texts[i : i + at_once], row_tokens)[0].sum())
        for i in own_share(range(0, len(texts), at_once), processes)
    )
    return float(processes.reduce_sum(torch.tensor(total, dtype=torch.float64))) / num_learned(texts)


def encode_all(chat: ChatFormat, conversations: Sequence[Conversation], row_tokens: int) -> list[Encoded]:
    """Token ids of all conversations.

    Raises ValueError naming the first that is longer than a row.
    """
    encoded = [encode(chat, conversation) for conversation in conversations]
    for conversation, text in zip(conversations, encoded, strict=True):
        if len(text.ids) > row_tokens:
            raise ValueError(
                f"{conversation.where}: takes {len(text.ids)} tokens, text.row_tokens is {row_tokens}: raise it"
            )
    return encoded


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

    def losses() -> dict[str, float]:
        with timer("judge"):
            return {
                s.name: cross_entropy(parts, texts, settings.row_tokens, fitting.micro_batch_size, processes)
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
            parts.model,
            len(drawn),
            lambda rows: -packed_logprobs(parts, [drawn[i] for i in rows], settings.row_tokens)[0].sum(),
            lambda rows: float(num_learned([drawn[i] for i in rows])),
            fitting,
            seed,
            on_step,
            processes=processes,
            threads=parts.threads,
        )
    after = losses()
    progress.say(f"after:  perplexity {show(after)} on the same texts")
    log.close()
    if not processes.is_main:
        return {}
    save_language_model(parts, folder.path / "model")
    results: dict[str, Any] = {
        name: {"perplexity before": math.exp(before[name]), "perplexity after": math.exp(after[name])}
        for name in before
    }
    results |= {"held-out texts": {s.name: len(s.held_out) for s in sources}, **spent(timer)}
    folder.write_results(results)
    pairs = [Pair(q, "", a, b, None, None) for (q, a), (_, b) in zip(said, samples(parts, sources), strict=True)]
    write_report(folder, "Supervised fine-tuning", results, pairs)
    return results


def draw(train: Sequence[Sequence[Encoded]], weights: Sequence[float] | None, count: int, seed: int) -> list[Encoded]:
    """`count` texts of the sources, by weight; at least one."""
    order = mixture_order([len(texts) for texts in train], weights or [1.0] * len(train), max(count, 1), seed)
    return [train[source][row] for source, row in order]


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
