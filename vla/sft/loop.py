"""The supervised training loop, for robots and text: any micro-batches, any loss.

Schedule, clipping, averaged weights, a clock that can end it, many processes, and a state that a
resumed run loads.
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
    """How long, how much at a time, and how fast.

    With `max_seconds` the schedule follows whichever is further on, steps or seconds.
    `micro_batch_size` examples go through the model in one pass (None: a whole batch): it changes
    memory, not the result. `learning_rate_name` is what the setting of the rate is called.
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
        """Examples of one pass through the model."""
        return self.micro_batch_size or self.batch_size

    def num_epochs(self, num_examples: int) -> float:
        """Passes over so many examples."""
        return self.num_steps * self.batch_size / num_examples


class SupervisedTrainer:
    """A module under supervised training, with its optimizer and averaged weights.

    `step` counts the optimizer steps that were made, `seconds` the time they took, over all
    sessions. `learning_rates` gives parameters whose name begins with a key a rate of their own.
    `threads` handle micro-batches at once.
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
        """Share of the work that is done, 0 to 1 and beyond."""
        settings = self.settings
        by_steps = self.step / settings.num_steps if settings.num_steps else 1.0
        by_time = self.seconds / settings.max_seconds if settings.max_seconds else 0.0
        return max(by_steps, by_time)

    @property
    def is_over(self) -> bool:
        """Whether steps or seconds are used up."""
        return self.progress >= 1

    def train[Piece](
        self,
        micro_batches: Callable[[int], Sequence[Piece]],
        loss_of: Callable[[Piece], tuple[Tensor, Metrics]],
        on_step: Callable[[int, Metrics], bool | None] = lambda step, metrics: None,
    ) -> None:
        """Optimizer steps until steps or seconds are used up, or `on_step(steps made, metrics)`
        returns True.

        `micro_batches(step)` is this process's part of the batch of a step, in pieces, and depends
        on nothing but the step: a resumed run gets the batches it would have got. Losses and
        metrics of all pieces, in all processes, add up to those of the batch.

        Raises:
            FloatingPointError: a loss or gradient is not finite; the weights are those of the step
                before.
        """
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        while not self.is_over:
            start = time.monotonic()
            pieces = micro_batches(self.step)
            self.optimizer.zero_grad()
            with self.processes.process_rng("fit", self.step):
                parts = add_gradients(parameters, pieces, with_loss_metric(loss_of), self.threads)
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
        """Refuse a step that would break the weights."""
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
        """Give the module its averaged weights for good, where there are any."""
        if self.ema is not None:
            self.ema.copy_to(self.module)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs besides the weights."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "state": {"step": self.step, "seconds": self.seconds},
        }
        return state if self.ema is None else {**state, "ema": self.ema.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; the weights of the module are loaded before."""
        self.step = state["state"]["step"]
        self.seconds = state["state"]["seconds"]
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def with_loss_metric[Piece](
    loss_of: Callable[[Piece], tuple[Tensor, Metrics]],
) -> Callable[[Piece], tuple[Tensor, Metrics]]:
    """`loss_of` whose loss, as a number, stands among its metrics."""

    def call(piece: Piece) -> tuple[Tensor, Metrics]:
        loss, metrics = loss_of(piece)
        return loss, {"loss": float(loss.detach()), **metrics}

    return call


def sum_metrics(parts: Sequence[Metrics], processes: Processes) -> Metrics:
    """Metrics of the whole batch: the sums over its pieces and processes. NaN in one is NaN in
    all."""
    # A process without a piece adds nothing to the loss, which is the one metric it must know of.
    names = list(parts[0]) if parts else ["loss"]
    sums = [sum(part[name] for part in parts) for name in names]
    if processes.num_processes > 1:
        sums = processes.reduce_sum(torch.tensor(sums, dtype=torch.float64)).tolist()
    return dict(zip(names, map(float, sums), strict=True))


@contextmanager
def scaled_learning_rates(optimizer: CombinedOptimizer, scale: float) -> Iterator[None]:
    """Learning rates scaled within the block. Outside it they are the settings', so that an
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
