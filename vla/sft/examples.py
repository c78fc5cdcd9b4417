"""Supervised training on a fixed list of examples: shuffled epochs, cut into micro-batches."""

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
"""Numbers of examples."""


def example_settings(fit: Fit, num_examples: int, section: str) -> SupervisedSettings:
    """The settings of a section for so many examples: its `num_epochs` become steps."""
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
    """Batches of numbers below `count`: every example once an epoch, in a new order each."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self._rng = np.random.default_rng(seed)
        self._epochs: list[np.ndarray] = []

    def __call__(self, step: int) -> list[int]:
        """The batch of a step, counted from 0."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        while len(self._epochs) * self.count < places.stop:
            self._epochs.append(self._rng.permutation(self.count))
        return [int(self._epochs[i // self.count][i % self.count]) for i in places]


def train_on_examples(
    module: nn.Module,
    num_examples: int,
    loss_of: Callable[[Rows], Tensor],
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
    """Train `module` in place.

    `loss_of(rows)` is a sum of terms; it is divided by `batch_weight(batch)` of the whole batch, the
    number of examples by default. `before_batch` gets a whole batch before it is cut. `stage` shows
    and saves the steps, and resumes. Every process has all examples and handles its share of a
    batch.

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
        return loss_of(rows) / total, {}

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
    count: int, size: int, values_of: Callable[[Rows], Tensor], threads: Threads = SINGLE_THREAD
) -> Tensor:
    """`values_of` of all rows below `count`, `size` rows at a time, on the CPU."""
    pieces = [range(i, min(i + size, count)) for i in range(0, count, size)]
    return torch.cat(threads.map(lambda rows: values_of(rows).float().cpu(), pieces))
