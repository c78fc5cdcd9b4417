"""Supervised steps on anything that has a loss: shuffled batches, micro-batches, warm-up and
annealing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from vla.collectives import sum_gradients
from vla.config.text import Fit
from vla.text.fit_stage import FitStage
from vla.threads import ONE, Threads, add_gradients, even_pieces
from vla.train.distributed import ALONE, Processes, own_share
from vla.train.optim import Schedule, make_optimizer


@dataclass(frozen=True)
class FitSettings:
    """`micro_batch_size` examples a pass: changes memory, not the result. The rate warms up, then
    anneals to 0 by a cosine.
    """

    num_steps: int
    batch_size: int
    micro_batch_size: int
    learning_rate: float
    warmup_fraction: float
    max_grad_norm: float

    @classmethod
    def of(cls, fit: Fit, num_examples: int) -> FitSettings:
        """The settings for so many examples: `num_epochs` passes over them become steps."""
        values = fit.model_dump(exclude={"num_epochs", "num_steps"})
        if fit.num_epochs is None:
            assert fit.num_steps is not None
            return cls(fit.num_steps, **values)
        return cls(math.ceil(fit.num_epochs * num_examples / fit.batch_size), **values)

    def epochs(self, num_examples: int) -> float:
        """How often each of so many examples is seen."""
        return self.num_steps * self.batch_size / num_examples


def fit(
    module: nn.Module,
    num_examples: int,
    loss_of: Callable[[Sequence[int]], Tensor],
    weight_of: Callable[[Sequence[int]], float],
    settings: FitSettings,
    seed: int,
    stage: FitStage | None = None,
    before_batch: Callable[[Sequence[int]], None] = lambda rows: None,
    processes: Processes = ALONE,
    threads: Threads = ONE,
    learning_rates: Mapping[str, float] | None = None,
) -> None:
    """`num_steps` AdamW steps. `loss_of(rows)` is a sum of terms, divided by `weight_of(batch)` of
    the whole batch.

    `before_batch` sees a whole batch before it is cut; `threads` handle pieces of it at once.
    `learning_rates` gives parameters whose name begins with a key a rate of their own. A `stage`
    saves on the way, and goes on from there. Every process has all examples and handles its share
    of a batch.

    Raises ValueError without examples, FloatingPointError when a loss or gradient is not finite;
    the weights are then those of the step before.
    """
    if settings.num_steps == 0:
        return
    if num_examples == 0:
        raise ValueError("there are no examples to learn from")
    optimizer = make_optimizer(
        module, "adamw", settings.learning_rate, 0.0, learning_rates=learning_rates
    )
    warmup = int(settings.warmup_fraction * settings.num_steps)
    schedule = Schedule(optimizer, "cosine", settings.num_steps, warmup)
    parameters = [p for p in module.parameters() if p.requires_grad]
    done = 0 if stage is None else stage.begin(module, optimizer, schedule)
    drawn = enumerate(batches(num_examples, settings.batch_size, settings.num_steps, seed), start=1)
    for step, batch in islice(drawn, done, None):
        before_batch(batch)
        total, own = weight_of(batch), own_share(batch, processes)
        optimizer.zero_grad()
        with processes.own_draws("fit", step):
            pieces = even_pieces(torch.tensor(own), settings.micro_batch_size, threads)
            loss = sum(add_gradients(parameters, pieces, partial(scaled, loss_of, total), threads))
        sum_gradients(parameters, processes.reduce_sum)
        loss = float(processes.reduce_sum(torch.tensor(loss, dtype=torch.float64)))
        norm = float(nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm))
        if not (np.isfinite(loss) and np.isfinite(norm)):
            optimizer.zero_grad()
            raise FloatingPointError(
                f"step {step}: loss {loss}, gradient norm {norm}: lower the learning rate"
            )
        optimizer.step()
        schedule.step()
        if stage is not None:
            stage.after(step, loss)
    optimizer.zero_grad()


def scaled(
    loss_of: Callable[[Sequence[int]], Tensor], total: float, rows: Tensor
) -> tuple[Tensor, float]:
    """A piece's share of the loss of a batch, with and without its gradient."""
    loss = loss_of(rows.tolist()) / total
    return loss, float(loss.detach())


def batches(count: int, batch_size: int, num_steps: int, seed: int) -> Iterator[list[int]]:
    """`num_steps` batches of numbers below `count`: every example once an epoch, in a new order
    each."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(num_steps):
        while len(order) < batch_size:
            order += rng.permutation(count).tolist()
        batch, order = order[:batch_size], order[batch_size:]
        yield batch


def one_each(rows: Sequence[int]) -> float:
    """Every example weighs the same: the loss is a mean over examples."""
    return float(len(rows))


@torch.no_grad()
def in_pieces(
    count: int, size: int, values_of: Callable[[Sequence[int]], Tensor], threads: Threads = ONE
) -> Tensor:
    """`values_of` of all rows, `size` rows at a time, on the CPU."""
    pieces = [range(i, min(i + size, count)) for i in range(0, count, size)]
    return torch.cat(threads.map(lambda rows: values_of(rows).float().cpu(), pieces))
