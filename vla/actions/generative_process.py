"""The protocol of generative processes, flow matching (`flow.py`) and diffusion (`diffusion.py`),
and Gaussian log-densities.

A process turns noise into a chunk of actions in `K` steps, with predictions of a network. t = 0 is
noise and t = 1 is data. With Gaussian noise in the steps they form a Markov chain with an exact
log-probability.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class GenerativeProcess(Protocol):
    """A process from noise to actions.

    Shapes: `H` control steps, `a` values of an action, `K` denoising steps.
    """

    @property
    def num_steps(self) -> int:
        """Number of denoising steps, K."""

    @property
    def times(self) -> Float[Tensor, "K"]:
        """The time of each step's prediction, from 0 on."""

    def draw_times(self, shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "*shape"]:
        """Random training times."""

    def corrupt(
        self,
        actions: Float[Tensor, "*#rows H a"],
        noise: Float[Tensor, "*#rows H a"],
        time: Float[Tensor, "*#rows"],
    ) -> tuple[Float[Tensor, "*#rows H a"], Float[Tensor, "*#rows H a"]]:
        """Actions mixed with noise at `time`, and the network's target there."""

    def move(
        self, step: int, state: Float[Tensor, "*rows H a"], prediction: Float[Tensor, "*rows H a"]
    ) -> Float[Tensor, "*rows H a"]:
        """The next state without further noise."""

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
