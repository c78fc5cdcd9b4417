"""Muon optimizer (Jordan 2024): orthogonalised momentum for the matrices of hidden layers.

torch.optim.Muon works in bfloat16, one matrix at a time. On a CPU without bfloat16 units that took
1.5 s a step for a 2 M parameter model, whose forward and backward pass took 1.0 s. This version
batches equal shapes in float32 and takes a twentieth of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Map the singular values of matrices [n, a, b] to about 1 by five quintic Newton-Schulz
    steps."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum, scaled by `sqrt(max(1, rows / columns))`, with decoupled
    weight decay.

    Raises:
        ValueError: for a parameter that is not a matrix.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        parameters = list(params)
        for parameter in parameters:
            if parameter.ndim != 2:
                raise ValueError(
                    "Muon takes matrices only, got a parameter of shape "
                    f"{tuple(parameter.shape)}: give it to AdamW"
                )
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                self._step_shape(parameters, shape, group)
        return loss

    def _step_shape(
        self, parameters: list[Tensor], shape: torch.Size, group: dict[str, Any]
    ) -> None:
        gradients = torch.stack([p.grad for p in parameters])  # type: ignore[misc]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        for buffer, gradient in zip(buffers, gradients, strict=True):
            buffer.lerp_(gradient, 1 - group["momentum"])
        momentum = torch.stack(buffers)
        update = orthogonalise(gradients.lerp(momentum, group["momentum"]))
        scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
        for parameter, direction in zip(parameters, update, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction, alpha=-scale)
