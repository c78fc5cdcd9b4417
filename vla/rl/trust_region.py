"""Optimizer steps of a given length, measured as KL divergence of the policy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import Parameter

from vla.rl.protocols import Optimizer

TRIES = 6
TOLERANCE = 0.15


def take_step(
    optimizer: Optimizer,
    parameters: list[Parameter],
    target_step_kl: float | None,
    kl: Callable[[], float],
) -> dict[str, float]:
    """Take an optimizer step, of length `target_step_kl` where that is not None; return its
    metrics."""
    if target_step_kl is None:
        optimizer.step()
        return {}
    return step_to_kl(optimizer, parameters, target_step_kl, kl)


@torch.no_grad()
def step_to_kl(
    optimizer: Optimizer,
    parameters: list[Parameter],
    target_step_kl: float,
    kl: Callable[[], float],
) -> dict[str, float]:
    """Take an optimizer step and rescale it until the policy has moved by `target_step_kl`.

    `kl()` measures the KL of the present weights from the acting ones. It grows with the square of
    the length, so each try multiplies the length by sqrt(target_step_kl / kl). This is the step
    size of TRPO (Schulman et al. 2015) along the optimizer's direction.
    """
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.step()
    moved = [parameter.detach() - old for parameter, old in zip(parameters, before, strict=True)]
    scale = 1.0
    step_kl = kl()
    for _ in range(TRIES):
        if abs(step_kl / target_step_kl - 1) < TOLERANCE:
            break
        scale *= min(max((target_step_kl / max(step_kl, 1e-12)) ** 0.5, 0.1), 10.0)
        for parameter, old, step in zip(parameters, before, moved, strict=True):
            parameter.copy_(old + scale * step)
        step_kl = kl()
    return {"step_kl": step_kl, "step_scale": scale}
