"""Supervised training on a fixed list of examples, in shuffled epochs and micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vla.config.text import Fit
from vla.sft.loop import Metrics, SupervisedSettings, SupervisedTrainer
from vla.sft.stage import TrainingStage
from vla.threads import SINGLE_THREAD, Threads, split_evenly
from vla.training.distributed import SINGLE_PROCESS, Processes, shard_rows

Rows = Sequence[int]
"""Indices of examples."""


def example_settings(fit: Fit, num_examples: int, section: str) -> SupervisedSettings:
    """Settings of the supervised loop from a section; `num_epochs` is converted to steps."""
    num_steps = fit.num_steps
    if fit.num_epochs is not None:
        num_steps = math.ceil(fit.num_epochs * num_examples / fit.batch_size)
    assert num_steps is not None, "settings were checked"
    return SupervisedSettings(
        num_steps=num_steps,
        batch_size=fit.batch_size,
        micro_batch_size=fit.micro_batch_size,
        learning_rate=fit.learning_rate,
        warmup_steps=int(fit.warmup_fraction * num_steps),
        max_grad_norm=fit.max_grad_norm,
        schedule=fit.schedule,
        max_seconds=fit.max_seconds,
        ema_decay=fit.ema_decay,
        learning_rate_name=f"{section}.learning_rate",
    )


class ShuffledBatches:
    """Batches of indices below `count`; every epoch visits each example once, in a new order."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self._rng = np.random.default_rng(seed)
        self._epochs: list[np.ndarray] = []

    def __call__(self, step: int) -> list[int]:
        """Indices in the batch of a step, from 0."""
        indices = range(step * self.batch_size, (step + 1) * self.batch_size)
        while len(self._epochs) * self.count < indices.stop:
            self._epochs.append(self._rng.permutation(self.count))
        return [int(self._epochs[i // self.count][i % self.count]) for i in indices]


def train_on_examples(
    module: nn.Module,
    num_examples: int,
    compute_loss: Callable[[Rows], Tensor],
    settings: SupervisedSettings,
    seed: int,
    stage: TrainingStage | None = None,
    *,
    batch_weight: Callable[[Rows], float] = len,
    before_batch: Callable[[Rows], None] = lambda rows: None,
    processes: Processes = SINGLE_PROCESS,
    threads: Threads = SINGLE_THREAD,
    learning_rates: Mapping[str, float] | None = None,
) -> None:
    """Train `module` in place on examples 0 to `num_examples` - 1.

    `compute_loss(rows)` is a sum over terms. It is divided by `batch_weight(batch)` of the whole
    batch, by default its number of examples. `before_batch` is called with a whole batch before
    it is split into micro-batches. `stage` logs, saves and resumes. Every process holds all
    examples and computes its share of a batch.

    Raises:
        ValueError: there are no examples.
        FloatingPointError: see `SupervisedTrainer.train`.
    """
    if settings.num_steps == 0:
        return
    if num_examples == 0:
        raise ValueError("there are no examples to learn from")
    trainer = SupervisedTrainer(
        module, settings, processes=processes, threads=threads, learning_rates=learning_rates
    )
    batches = ShuffledBatches(num_examples, settings.batch_size, seed)

    def micro_batches(step: int) -> list[tuple[list[int], float]]:
        batch = batches(step)
        before_batch(batch)
        total = batch_weight(batch)
        own = torch.tensor(shard_rows(batch, processes))
        return [
            (rows.tolist(), total) for rows in split_evenly(own, settings.rows_per_pass, threads)
        ]

    def piece_loss(piece: tuple[list[int], float]) -> tuple[Tensor, Metrics]:
        rows, total = piece
        return compute_loss(rows) / total, {}

    def on_step(step: int, metrics: Metrics) -> None:
        if trainer.is_over:
            trainer.use_averaged_weights()
        if stage is not None:
            stage.record_step(step, metrics["loss"])

    if stage is not None:
        stage.resume(trainer)
    trainer.train(micro_batches, piece_loss, on_step)


@torch.no_grad()
def evaluate_rows(
    count: int,
    size: int,
    compute_values: Callable[[Rows], Tensor],
    threads: Threads = SINGLE_THREAD,
) -> Tensor:
    """`compute_values` of rows 0 to `count` - 1, in pieces of `size` rows, on the CPU."""
    pieces = [range(i, min(i + size, count)) for i in range(0, count, size)]
    return torch.cat(threads.map(lambda rows: compute_values(rows).float().cpu(), pieces))
