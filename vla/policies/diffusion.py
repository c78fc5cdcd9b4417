"""Denoising diffusion by an action expert, DDPM trained and DDIM sampled (Diffusion Policy, Chi et
al. 2023; DPPO): settings of `policy=diffusion`. The head is `denoising.DenoisingHead`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from vla.actions.diffusion import Diffusion
from vla.actions.fast import FastCode
from vla.actions.normalize import ActionNormalizer
from vla.models.vlm import VisionLanguageModel
from vla.policies.denoising import (
    DenoisingHead,
    DenoisingSettings,
    denoising_code_notes,
    fit_denoising_code,
    make_denoising_head,
    read_denoising_code,
)
from vla.policies.traits import Cache
from vla.ranges import (
    ActionTokens,
    EvenSize,
    InstructionLength,
    NonNegative,
    Positive,
    Size,
    SmallCount,
    nearest_divisor,
)


@dataclass(frozen=True)
class DiffusionSettings:
    """Settings of `policy=diffusion`."""

    cache: ClassVar[Cache | None] = "prefix"
    can_guide: ClassVar[bool] = True
    starts_from_noise: ClassVar[bool] = True
    chunk: SmallCount
    instruction_length: InstructionLength
    num_steps: SmallCount
    num_train_steps: SmallCount
    prediction: Literal["epsilon", "sample", "v_prediction"]
    num_stochastic_steps: SmallCount
    min_std: Positive
    clip: Positive
    width: EvenSize
    intermediate: Size
    samples: SmallCount
    stop_gradient_to_vlm: bool
    token_weight: NonNegative
    num_tokens: ActionTokens
    token_scale: Positive

    def __post_init__(self) -> None:
        if self.num_stochastic_steps > self.num_steps:
            raise ValueError(
                f"num_stochastic_steps ({self.num_stochastic_steps}) is more than "
                f"num_steps ({self.num_steps}): the chain has no more steps to draw"
            )
        if self.num_train_steps % self.num_steps:
            nearest = nearest_divisor(self.num_steps, self.num_train_steps)
            raise ValueError(
                f"num_steps ({self.num_steps}) must divide num_train_steps "
                f"({self.num_train_steps}): {nearest} does"
            )

    @property
    def unused(self) -> dict[str, tuple[str, ...]]:
        return {} if self.token_weight else {"token_weight": ("num_tokens", "token_scale")}

    def fit_code(self, chunks: np.ndarray) -> ActionNormalizer | FastCode:
        return fit_denoising_code(chunks, self.token_weight, self.num_tokens, self.token_scale)

    def read_code(self, values: Mapping[str, Any]) -> ActionNormalizer | FastCode:
        return read_denoising_code(values, self.token_weight)

    def code_notes(self, code: Any, frames: np.ndarray, names: Sequence[str]) -> list[str]:
        notes = denoising_code_notes(code, self.num_tokens, frames, names)
        normalizer = code.normalizer if isinstance(code, FastCode) else code
        values = normalizer.encode(torch.from_numpy(frames)).abs()
        clipped = float((values > self.clip).any(-1).float().mean())
        if clipped:
            notes.append(
                f"policy.clip ({self.clip:g}) cuts the actions of {100 * clipped:.3g} % of the "
                f"frames, which lie up to {float(values.max()):.3g} out: raise policy.clip to "
                "that for them to be executed whole"
            )
        return notes

    def make_head(
        self, model: VisionLanguageModel, code: ActionNormalizer | FastCode
    ) -> DenoisingHead:
        process = Diffusion(
            self.num_train_steps, self.num_steps, self.prediction, self.min_std, self.clip
        )
        settings = DenoisingSettings(
            chunk=self.chunk,
            width=self.width,
            intermediate=self.intermediate,
            exploration="all_steps",
            num_stochastic_steps=self.num_stochastic_steps,
            samples=self.samples,
            stop_gradient_to_vlm=self.stop_gradient_to_vlm,
            token_weight=self.token_weight,
        )
        return make_denoising_head(model, process, settings, code)
