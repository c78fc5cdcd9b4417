"""Supervised fine-tuning on conversations: weighted mixtures, packed rows, loss on replies."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from vla.config.text import TextConfig, TextSft
from vla.data.conversations import EncodedConversation
from vla.data.rows import RowReader
from vla.sft.examples import example_settings, train_on_examples
from vla.sft.stage import TrainingStage
from vla.text.held_out_texts import TextEvaluation, evaluate_texts, pair_text_answers
from vla.text.language_model import load_language_parts
from vla.text.sources import (
    TokenLimit,
    count_loss_tokens,
    draw_mixture,
    encode_conversations,
    packed_logprobs,
    read_source,
    training_texts,
)
from vla.text.text_report import finish_run
from vla.training.distributed import broadcast_weights
from vla.training.resumable_work import ResumableWork, load_or_compute
from vla.training.run import Run


def run_sft(config: TextConfig, run: Run) -> dict[str, object]:
    """Train on the mixture; returns the held-out perplexity before and after, by source."""
    settings = config.text
    assert isinstance(settings, TextSft)
    reader = RowReader(settings.on_bad_row)
    sources = [
        read_source(name, settings.holdout_fraction, reader=reader) for name in settings.sources
    ]
    with run.timer("load"):
        parts = load_language_parts(
            config.language_model, config.train, settings.system, training_texts(sources)
        )
        limit = TokenLimit(settings.row_tokens, "text.row_tokens").within(parts.context)
        train = [
            encode_conversations(parts.chat, source.name, source.train, limit, reader)
            for source in sources
        ]
        held_out = [
            encode_conversations(parts.chat, source.name, source.held_out, limit, reader)
            for source in sources
        ]
    reader.report_lines(run.progress.print_line)
    broadcast_weights(parts.model, run.processes)
    num_texts = sum(map(len, train))
    training = example_settings(settings.fit, num_texts, "text.fit")
    num_epochs = training.num_epochs(num_texts)
    run.progress.print_line(
        f"{training.num_steps} steps are {num_epochs:.3g} epochs of {num_texts} texts"
    )

    def compute_logprobs(texts: Sequence[EncodedConversation]) -> tuple[Tensor, Tensor]:
        return packed_logprobs(
            parts.model, texts, settings.row_tokens, parts.tree_attention, parts.autocast
        )

    def evaluate(pieces: ResumableWork) -> TextEvaluation:
        with run.timer("evaluation"):
            return evaluate_texts(
                parts, sources, held_out, compute_logprobs, training.rows_per_pass, run.processes
            )

    before: TextEvaluation = load_or_compute(run, "before", TextEvaluation, evaluate)
    run.progress.print_line(f"before: perplexity {before} on held-out texts")
    seed = run.seed("mixture")
    drawn = draw_mixture(train, settings.weights, training.num_steps * training.batch_size, seed)
    with TrainingStage(run, "sft", training.num_steps) as stage:
        train_on_examples(
            parts.model,
            len(drawn),
            lambda rows: -compute_logprobs([drawn[i] for i in rows])[0].sum(),
            training,
            seed,
            stage,
            batch_weight=lambda rows: count_loss_tokens([drawn[i] for i in rows]),
            processes=run.processes,
            threads=parts.threads,
        )
    after: TextEvaluation = load_or_compute(run, "after", TextEvaluation, evaluate)
    run.progress.print_line(f"after:  perplexity {after} on the same texts")
    results: dict[str, object] = {
        name: {
            "perplexity before": math.exp(loss),
            "perplexity after": math.exp(after.losses[name]),
        }
        for name, loss in before.losses.items()
    }
    results["held-out texts"] = {
        source.name: len(texts) for source, texts in zip(sources, held_out, strict=True)
    }
    results |= {"epochs": num_epochs, **reader.results()}
    return finish_run(
        run, "Supervised fine-tuning", results, pair_text_answers(before, after), parts
    )
