"""The supervised loop: one step function over any batches, with schedule, averaged weights and a clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class SupervisedSettings:
    """`max_seconds` shortens the schedule to what fits: progress is measured in steps or seconds, whichever is further on."""

    num_steps: int
    max_seconds: float | None
    warmup_steps: int
    max_grad_norm: float
    log_every: int


def learning_rate_scale(step: int, warmup_steps: int, progress: float) -> float:
    """Linear warm-up, then half a cosine to zero over `progress` in [0, 1]."""
    import math

    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def fit(
    parameters: list[nn.Parameter],
    loss_of: Callable[[object], tuple[Tensor, Metrics]],
    batches: Iterable[object],
    optimizer: torch.optim.Optimizer,
    settings: SupervisedSettings,
    after_step: Callable[[int], None] = lambda step: None,
    on_log: Callable[[int, Metrics], None] = lambda step, metrics: None,
    first_step: int = 0,
    elapsed_seconds: float = 0.0,
) -> int:
    """Take optimizer steps until the steps or the seconds are used up; return the number of the last step.

    Raises FloatingPointError when a loss or gradient is not finite: the weights are those of the step before.
    """
    base = [group["lr"] for group in optimizer.param_groups]
    start = time.monotonic() - elapsed_seconds
    window: list[dict[str, float]] = []
    step = first_step
    for step, batch in enumerate(batches, start=first_step):
        elapsed = time.monotonic() - start
        progress = max(step / settings.num_steps, elapsed / settings.max_seconds if settings.max_seconds else 0.0)
        if progress >= 1:
            break
        scale = learning_rate_scale(step, settings.warmup_steps, progress)
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * scale
        loss, metrics = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm))
        if not (torch.isfinite(loss) and norm < float("inf")):
            raise FloatingPointError(
                f"step {step}: loss {float(loss)}, gradient norm {norm}: lower sft.learning_rate or look at the data; "
                "the last checkpoint is untouched"
            )
        optimizer.step()
        after_step(step)
        window.append({"loss": float(loss.detach()), "grad_norm": norm, **metrics})
        if (step + 1) % settings.log_every == 0:
            means = {key: sum(w[key] for w in window) / len(window) for key in window[0]}
            on_log(step + 1, means | {"progress": progress, "learning_rate": base[0] * scale})
            window.clear()
    for group, rate in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = rate
    return step
