"""An optimizer step of a given length, measured where it matters: in what the policy does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import Parameter

from vla.rl.protocols import Optimizer

TRIES, TOLERANCE = 6, 0.15


def take_step(
    optimizer: Optimizer,
    parameters: list[Parameter],
    target_step_kl: float | None,
    kl: Callable[[], float],
) -> dict[str, float]:
    """The optimizer's step, of its own length where `target_step_kl` is None; what there is to say about
    its length."""
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
    """Take the optimizer's step, made longer or shorter until the policy has moved by `target_step_kl`,
    and say by how much.

    `kl()` measures how far the present weights are from those that acted. It grows with the square
    of the length, so each try multiplies the length by sqrt(target_step_kl / kl). This is the step size of
    TRPO (Schulman et al. 2015) along another direction: whatever the optimizer chose.
    """
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.step()
    moved = [parameter.detach() - old for parameter, old in zip(parameters, before, strict=True)]
    scale, found = 1.0, kl()
    for _ in range(TRIES):
        if abs(found / target_step_kl - 1) < TOLERANCE:
            break
        scale *= min(max((target_step_kl / max(found, 1e-12)) ** 0.5, 0.1), 10.0)
        for parameter, old, step in zip(parameters, before, moved, strict=True):
            parameter.copy_(old + scale * step)
        found = kl()
    return {"target_step_kl": found, "step_scale": scale}
