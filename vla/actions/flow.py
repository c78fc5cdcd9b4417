"""Flow matching on chunks of actions (Lipman et al. 2023; Black et al. 2024, pi0), and its
stochastic sampler.

x_t = t x_1 + (1 - t) x_0 with data x_1 and noise x_0 ~ N(0, I): the network learns the velocity v =
x_1 - x_0. Along a straight line x_1 = x + (1 - t) v and x_0 = x - t v, so a step of length d
without noise is Euler's x + d v.

Flow-SDE (Liu et al. 2025, Flow-GRPO, eq. 8 to 12; Chen et al. 2025, pi_RL): the stochastic process
with the same marginals as the flow,

    dx = [v + s^2 / 2 grad log p_t(x)] dt + s dw
    grad log p_t(x) = -x_0 / (1 - t),   s = a sqrt((1 - t) / t)

discretised: mean x + d v - s^2 d / (2 (1 - t)) x_0 and standard deviation s sqrt(d). At t = 0 s is
infinite, so the denominator takes the t of the next step.

Shapes: `H` control steps, `a` values of an action, `K` denoising steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LATEST_TRAINED = 0.999
"""Upper bound on training times (pi0's s): nearer to the data there is nothing left to learn."""


@dataclass(frozen=True)
class FlowMatching:
    """Flow matching with `num_steps` Euler steps, a `GenerativeProcess`.

    Training times are 0.999 (1 - u) with u ~ Beta(`time_alpha`, `time_beta`); 1.5 and 1 put more
    weight on noise than on data (pi0). `noise_level` is the a of Flow-SDE.
    """

    num_steps: int
    time_alpha: float
    time_beta: float
    noise_level: float

    @property
    def times(self) -> Float[Tensor, "K"]:
        return torch.arange(self.num_steps) / self.num_steps

    def draw_times(self, shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "*shape"]:
        beta = torch.distributions.Beta(self.time_alpha, self.time_beta)
        return LATEST_TRAINED * (1 - beta.sample(shape).to(device))

    def corrupt(
        self,
        actions: Float[Tensor, "*#rows H a"],
        noise: Float[Tensor, "*#rows H a"],
        time: Float[Tensor, "*#rows"],
    ) -> tuple[Float[Tensor, "*#rows H a"], Float[Tensor, "*#rows H a"]]:
        at = time[..., None, None]
        return at * actions + (1 - at) * noise, actions - noise

    def move(
        self, step: int, state: Float[Tensor, "*rows H a"], prediction: Float[Tensor, "*rows H a"]
    ) -> Float[Tensor, "*rows H a"]:
        return state + prediction / self.num_steps

    def transition(
        self, step: int, state: Float[Tensor, "*rows H a"], prediction: Float[Tensor, "*rows H a"]
    ) -> tuple[Float[Tensor, "*rows H a"], float]:
        length = 1 / self.num_steps
        time = step / self.num_steps
        # max(): the first step takes the time of the second, where s is finite.
        variance = self.noise_level**2 * (1 - time) / max(time, length)
        # The predicted noise x_0 = x - t v stands for the score.
        noise = state - time * prediction
        mean = state + length * prediction - variance * length / (2 * (1 - time)) * noise
        return mean, math.sqrt(variance * length)
