"""The supervised loop: any batches, any loss; schedule, clipping, averaged weights, and a clock
that can end it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vla.collectives import sum_gradients
from vla.train.agreement import main_seconds
from vla.train.distributed import ALONE, Processes
from vla.train.optim import EMA, ScheduleKind, Together, schedule_scale


@dataclass(frozen=True)
class SupervisedSettings:
    """How long and how fast. With `max_seconds` the schedule follows whichever is further on, steps
    or seconds."""

    num_steps: int
    max_seconds: float | None
    warmup_fraction: float
    schedule: ScheduleKind
    max_grad_norm: float


@dataclass
class SupervisedState:
    """What the loop itself must remember to go on: steps done and seconds spent."""

    step: int = 0
    seconds: float = 0.0

    def progress(self, settings: SupervisedSettings) -> float:
        """Share of the work that is done, 0 to 1 and beyond."""
        by_steps = self.step / settings.num_steps if settings.num_steps else 1.0
        by_time = self.seconds / settings.max_seconds if settings.max_seconds else 0.0
        return max(by_steps, by_time)


def fit(
    module: nn.Module,
    loss_of: Callable[[Any], tuple[Tensor, dict[str, float]]],
    batch_at: Callable[[int], Any],
    optimizer: Together,
    settings: SupervisedSettings,
    state: SupervisedState,
    ema: EMA | None,
    on_step: Callable[[int, dict[str, float]], bool | None],
    processes: Processes = ALONE,
) -> None:
    """Optimizer steps from `state` on until steps or seconds are used up, or `on_step(steps done,
    metrics)` says True.

    `batch_at(step)` depends on nothing but the step, so a resumed run sees the batches that it
    would have seen. Of many processes each has its part of a batch; losses and metrics of the parts
    add up to those of the batch.

    Raises:
        FloatingPointError: a loss or gradient is not finite; the weights are those of the step before.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    warmup_steps = round(settings.warmup_fraction * settings.num_steps)
    while (progress := state.progress(settings)) < 1:
        start = time.monotonic()
        batch = batch_at(state.step)
        with processes.own_draws("fit", state.step):
            loss, metrics = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        sum_gradients(parameters, processes.reduce_sum)
        norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        loss, metrics = sum_parts(loss.detach(), metrics, processes)
        if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
            raise FloatingPointError(
                f"step {state.step}: loss {float(loss)}, gradient norm {float(norm)}: lower sft.learning_rate "
                "or look at the data; the last checkpoint is intact"
            )
        scale = schedule_scale(settings.schedule, progress, state.step, warmup_steps)
        with scaled_rates(optimizer, scale):
            optimizer.step()
        if ema is not None:
            ema.update(module)
        state.step += 1
        state.seconds += main_seconds(time.monotonic() - start, processes)
        if on_step(
            state.step,
            {"loss": float(loss), "grad_norm": float(norm), "lr_scale": scale, **metrics},
        ):
            break


def sum_parts(
    loss: Tensor, metrics: dict[str, float], processes: Processes
) -> tuple[Tensor, dict[str, float]]:
    """The loss and metrics of the whole batch: the sums of what the processes found. NaN in one is
    NaN in all."""
    if processes.num_processes == 1:
        return loss, metrics
    parts = torch.tensor([float(loss), *metrics.values()], dtype=torch.float64)
    total, *values = processes.reduce_sum(parts).unbind()
    return total, dict(zip(metrics, map(float, values), strict=True))


@contextmanager
def scaled_rates(optimizer: Together, scale: float) -> Iterator[None]:
    """Within the block the learning rates are scaled. Outside it they are the settings', so that an
    optimizer saved between two steps does not carry the schedule with it.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
