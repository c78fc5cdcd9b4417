"""The supervised training loop of robots and text: any micro-batches, any loss.

It has a schedule, gradient clipping, averaged weights, a time limit, several processes, and a
resumable state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vla.collectives import sum_gradients
from vla.threads import SINGLE_THREAD, Threads, add_gradients
from vla.training.distributed import SINGLE_PROCESS, Processes
from vla.training.optim import EMA, CombinedOptimizer, ScheduleKind, make_optimizer, schedule_scale
from vla.training.synchronization import main_process_seconds

Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class SupervisedSettings:
    """Settings of supervised training: length, batch sizes, optimizer and schedule.

    With `max_seconds` the schedule follows steps or seconds, whichever is nearer to its end.
    `micro_batch_size` examples pass through the model at once (None: the whole batch); the result
    does not depend on it, memory does. `learning_rate_name` is the name of the setting in errors.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    max_grad_norm: float
    micro_batch_size: int | None = None
    max_seconds: float | None = None
    warmup_steps: int = 0
    schedule: ScheduleKind = "cosine"
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    muon_learning_rate: float | None = None
    weight_decay: float = 0.0
    ema_decay: float | None = None
    learning_rate_name: str = "the learning rate"

    @property
    def rows_per_pass(self) -> int:
        """Number of examples in one pass through the model."""
        return self.micro_batch_size or self.batch_size

    def num_epochs(self, num_examples: int) -> float:
        """Number of epochs over `num_examples` examples."""
        return self.num_steps * self.batch_size / num_examples


class SupervisedTrainer:
    """Trainer of a module, with its optimizer and averaged weights.

    `step` counts optimizer steps and `seconds` their time, over all sessions. `learning_rates`
    gives parameters whose name begins with a key their own rate. `threads` compute micro-batches
    in parallel.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: SupervisedSettings,
        *,
        processes: Processes = SINGLE_PROCESS,
        threads: Threads = SINGLE_THREAD,
        learning_rates: Mapping[str, float] | None = None,
    ) -> None:
        self.module = module
        self.settings = settings
        self.processes = processes
        self.threads = threads
        self.optimizer = make_optimizer(
            module,
            settings.optimizer,
            settings.learning_rate,
            settings.weight_decay,
            settings.muon_learning_rate,
            learning_rates,
        )
        self.ema = None if settings.ema_decay is None else EMA(module, settings.ema_decay)
        self.step = 0
        self.seconds = 0.0

    @property
    def progress(self) -> float:
        """Finished fraction of the training, 0 to 1 and beyond."""
        settings = self.settings
        by_steps = self.step / settings.num_steps if settings.num_steps else 1.0
        by_time = self.seconds / settings.max_seconds if settings.max_seconds else 0.0
        return max(by_steps, by_time)

    @property
    def is_over(self) -> bool:
        """True where all steps or seconds are used."""
        return self.progress >= 1

    def train[Piece](
        self,
        micro_batches: Callable[[int], Sequence[Piece]],
        compute_loss: Callable[[Piece], tuple[Tensor, Metrics]],
        on_step: Callable[[int, Metrics], bool | None] = lambda step, metrics: None,
    ) -> None:
        """Train until all steps or seconds are used, or `on_step(steps made, metrics)` is True.

        `micro_batches(step)` is this process's part of the batch of a step, in pieces. It depends
        on the step alone, so a resumed run gets the same batches. Losses and metrics of all pieces
        in all processes add up to those of the batch.

        Raises:
            FloatingPointError: a loss or gradient is not finite; the weights are those after the
                previous step.
        """
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        while not self.is_over:
            start = time.monotonic()
            pieces = micro_batches(self.step)
            self.optimizer.zero_grad()
            with self.processes.process_rng("fit", self.step):
                parts = add_gradients(
                    parameters, pieces, with_loss_metric(compute_loss), self.threads
                )
            sum_gradients(parameters, self.processes.reduce_sum)
            norm = float(nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm))
            metrics = sum_metrics(parts, self.processes)
            self._check(metrics["loss"], norm)
            scale = schedule_scale(
                self.settings.schedule, self.progress, self.step, self.settings.warmup_steps
            )
            with scaled_learning_rates(self.optimizer, scale):
                self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.module)
            self.step += 1
            self.seconds += main_process_seconds(time.monotonic() - start, self.processes)
            loss = metrics.pop("loss")
            if on_step(self.step, {"loss": loss, "grad_norm": norm, "lr_scale": scale, **metrics}):
                break
        self.optimizer.zero_grad()

    def _check(self, loss: float, norm: float) -> None:
        """Raise FloatingPointError before a step with a loss or gradient that is not finite."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self.optimizer.zero_grad()
        settings = self.settings
        raise FloatingPointError(
            f"step {self.step + 1}: loss {loss}, gradient norm {norm}: lower "
            f"{settings.learning_rate_name} ({settings.learning_rate:g}) or look at the data; the "
            "last checkpoint is intact"
        )

    def use_averaged_weights(self) -> None:
        """Copy the averaged weights into the module, where `ema_decay` is set."""
        if self.ema is not None:
            self.ema.copy_to(self.module)

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, counters and averaged weights, without the module's weights."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "state": {"step": self.step, "seconds": self.seconds},
        }
        return state if self.ema is None else {**state, "ema": self.ema.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`; the caller loads the module's weights first."""
        self.step = state["state"]["step"]
        self.seconds = state["state"]["seconds"]
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def with_loss_metric[Piece](
    compute_loss: Callable[[Piece], tuple[Tensor, Metrics]],
) -> Callable[[Piece], tuple[Tensor, Metrics]]:
    """`compute_loss` with the loss as a number among its metrics."""

    def call(piece: Piece) -> tuple[Tensor, Metrics]:
        loss, metrics = compute_loss(piece)
        return loss, {"loss": float(loss.detach()), **metrics}

    return call


def sum_metrics(parts: Sequence[Metrics], processes: Processes) -> Metrics:
    """Sums of metrics over pieces and processes; NaN in one process is NaN in all.

    The first piece names them; a later one may lack some.
    """
    # A process without a piece still takes part in the sum of the loss.
    names = list(parts[0]) if parts else ["loss"]
    sums = [sum(part.get(name, 0.0) for part in parts) for name in names]
    if processes.num_processes > 1:
        sums = processes.reduce_sum(torch.tensor(sums, dtype=torch.float64)).tolist()
    return dict(zip(names, map(float, sums), strict=True))


@contextmanager
def scaled_learning_rates(optimizer: CombinedOptimizer, scale: float) -> Iterator[None]:
    """Scale the learning rates within the block.

    Outside it they are those of the settings, so a saved optimizer does not contain the schedule.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
