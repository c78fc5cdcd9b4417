"""What a policy that denoises asks of the process behind it: flow matching (`flow.py`) or diffusion
(`diffusion.py`).

A process turns noise into a chunk of actions in `K` steps with the help of a network's predictions.
t = 0 is noise and t = 1 is data. Taken as draws from Gaussians, the steps are a Markov chain whose
log-probability is exact.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class GenerativeProcess(Protocol):
    """Shapes: `H` control steps, `a` values of an action, `K` denoising steps."""

    @property
    def num_steps(self) -> int:
        """K."""

    @property
    def times(self) -> Float[Tensor, "K"]:
        """The time at which each step asks for a prediction, from 0 on."""

    def draw_times(self, shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "*shape"]:
        """Random times to train at."""

    def corrupt(
        self,
        actions: Float[Tensor, "*#rows H a"],
        noise: Float[Tensor, "*#rows H a"],
        time: Float[Tensor, "*#rows"],
    ) -> tuple[Float[Tensor, "*#rows H a"], Float[Tensor, "*#rows H a"]]:
        """Actions on their way from noise at `time`, and what the network should predict there."""

    def move(
        self, step: int, state: Float[Tensor, "*rows H a"], prediction: Float[Tensor, "*rows H a"]
    ) -> Float[Tensor, "*rows H a"]:
        """The next state without any further noise."""

    def transition(
        self, step: int, state: Float[Tensor, "*rows H a"], prediction: Float[Tensor, "*rows H a"]
    ) -> tuple[Float[Tensor, "*rows H a"], float]:
        """Mean and standard deviation of the next state when the step is a draw."""


def gaussian_logprob(
    value: Float[Tensor, "*rows H a"],
    mean: Float[Tensor, "*rows H a"],
    std: Float[Tensor, "*rows H a"] | float,
) -> Float[Tensor, "*rows"]:
    """log N(value; mean, std), summed over the H a numbers of a chunk."""
    log_std = std.log() if isinstance(std, Tensor) else math.log(std)
    terms = -0.5 * ((value - mean) / std).square() - log_std - 0.5 * math.log(2 * math.pi)
    return terms.sum((-1, -2))


def gaussian_entropy(std: Float[Tensor, "*rows H a"]) -> Float[Tensor, "*rows"]:
    """Entropy in nats of independent Gaussians, summed over the H a numbers of a chunk."""
    return (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum((-1, -2))
