"""Denoising diffusion on chunks of actions (Ho et al. 2020; Chi et al. 2023), sampled by DDIM (Song
et al. 2021).

Both sides are schedulers of `diffusers`. As a chain of draws (Ren et al. 2024, DPPO) the sampler is
DDIM with eta = 1 and a floor under its standard deviation, the last step included; without further
noise eta = 0. The network's time input is t = 1 - timestep / T, so that t = 0 is noise here too.

Shapes: `H` control steps, `a` values of an action, `K` denoising steps.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

Prediction = Literal["epsilon", "sample", "v_prediction"]


class Diffusion:
    """Diffusion with T = `num_train_steps` noise levels (cosine schedule), a `GenerativeProcess`.

    Sampling uses `num_steps` of them. `prediction` is the network's target: the noise, the actions,
    or the velocity between them (Salimans and Ho 2022). `min_std` is the least standard deviation
    of a draw; `clip` bounds the actions predicted on the way, on the normalised scale.

    Raises:
        ValueError: `num_steps` exceeds `num_train_steps`, or does not divide it.
    """

    def __init__(
        self,
        num_train_steps: int,
        num_steps: int,
        prediction: Prediction,
        min_std: float,
        clip: float,
    ):
        from diffusers import DDIMScheduler, DDPMScheduler

        if not 1 <= num_steps <= num_train_steps:
            raise ValueError(
                f"policy.num_steps ({num_steps}) must lie between 1 and "
                f"policy.num_train_steps ({num_train_steps})"
            )
        if num_train_steps % num_steps:
            raise ValueError(
                f"policy.num_steps ({num_steps}) must divide policy.num_train_steps "
                f"({num_train_steps}): the steps are equally long"
            )
        settings = {
            "num_train_timesteps": num_train_steps,
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": prediction,
            "clip_sample": True,
            "clip_sample_range": clip,
        }
        self.noising: Any = DDPMScheduler(**settings)
        self.sampler = cast(Any, DDIMScheduler(**settings, timestep_spacing="trailing"))
        self.sampler.set_timesteps(num_steps)
        self.timesteps: list[int] = self.sampler.timesteps.tolist()
        self.num_train_steps = num_train_steps
        self.num_steps = num_steps
        self.prediction = prediction
        self.min_std = min_std
        # The scheduler does not return its standard deviation; unit noise on zeros shows it.
        nothing = torch.zeros(1)
        one = torch.ones(1)
        self.stds = [
            max(
                float(
                    self._step(k, nothing, nothing, one) - self._step(k, nothing, nothing, nothing)
                ),
                min_std,
            )
            for k in range(num_steps)
        ]

    def _step(self, step: int, state: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        """DDIM with eta = 1 and this noise, or with eta = 0 and none."""
        eta = 0.0 if noise is None else 1.0
        moved, _ = self.sampler.step(
            prediction,
            self.timesteps[step],
            state,
            eta=eta,
            variance_noise=noise,
            return_dict=False,
        )
        return moved

    @property
    def times(self) -> Float[Tensor, "K"]:
        return 1 - torch.tensor(self.timesteps) / self.num_train_steps

    def draw_times(self, shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "*shape"]:
        return (
            1 - torch.randint(0, self.num_train_steps, shape, device=device) / self.num_train_steps
        )

    def corrupt(
        self,
        actions: Float[Tensor, "*#rows H a"],
        noise: Float[Tensor, "*#rows H a"],
        time: Float[Tensor, "*#rows"],
    ) -> tuple[Float[Tensor, "*#rows H a"], Float[Tensor, "*#rows H a"]]:
        steps = ((1 - time) * self.num_train_steps).round().long().flatten()
        shape = torch.broadcast_shapes(actions.shape, noise.shape)
        flat = actions.expand(shape).reshape(-1, *shape[-2:])
        flat_noise = noise.expand(shape).reshape(-1, *shape[-2:])
        noised = self.noising.add_noise(flat, flat_noise, steps).view(shape)
        if self.prediction == "epsilon":
            return noised, noise.expand(shape)
        if self.prediction == "sample":
            return noised, actions.expand(shape)
        return noised, self.noising.get_velocity(flat, flat_noise, steps).view(shape)

    def move(
        self, step: int, state: Float[Tensor, "*rows H a"], prediction: Float[Tensor, "*rows H a"]
    ) -> Float[Tensor, "*rows H a"]:
        return self._step(step, state, prediction, None)

    def transition(
        self, step: int, state: Float[Tensor, "*rows H a"], prediction: Float[Tensor, "*rows H a"]
    ) -> tuple[Float[Tensor, "*rows H a"], float]:
        return self._step(step, state, prediction, torch.zeros_like(state)), self.stds[step]
