"""Flow matching by an action expert (pi0, Black et al. 2024; pi0.5): settings of `policy=flow`. The
head is `denoising.DenoisingHead`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from vla.actions.fast import FastCode
from vla.actions.flow import FlowMatching
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
)


@dataclass(frozen=True)
class FlowSettings:
    """Settings of `policy=flow`."""

    cache: ClassVar[Cache | None] = "prefix"
    can_guide: ClassVar[bool] = True
    starts_from_noise: ClassVar[bool] = True
    chunk: SmallCount
    instruction_length: InstructionLength
    num_steps: SmallCount
    exploration: Literal["one_step", "all_steps", "learned_noise", "matching"]
    num_stochastic_steps: SmallCount
    noise_level: Positive
    min_noise: Positive
    max_noise: Positive
    width: EvenSize
    intermediate: Size
    samples: SmallCount
    time_alpha: Positive
    time_beta: Positive
    stop_gradient_to_vlm: bool
    token_weight: NonNegative
    num_tokens: ActionTokens
    token_scale: Positive

    def __post_init__(self) -> None:
        if self.min_noise > self.max_noise:
            raise ValueError(
                f"min_noise ({self.min_noise}) must not exceed max_noise "
                f"({self.max_noise}): swap them"
            )
        if self.num_stochastic_steps > self.num_steps:
            raise ValueError(
                f"num_stochastic_steps ({self.num_stochastic_steps}) is more than "
                f"num_steps ({self.num_steps}): the chain has no more steps to draw"
            )

    @property
    def unused(self) -> dict[str, tuple[str, ...]]:
        ignored = {
            "one_step": ("min_noise", "max_noise"),
            "all_steps": ("min_noise", "max_noise"),
            "learned_noise": ("noise_level",),
            "matching": ("min_noise", "max_noise", "noise_level", "num_stochastic_steps"),
        }
        unused = {} if self.token_weight else {"token_weight": ("num_tokens", "token_scale")}
        return {**unused, "exploration": ignored[self.exploration]}

    def fit_code(self, chunks: np.ndarray) -> ActionNormalizer | FastCode:
        return fit_denoising_code(chunks, self.token_weight, self.num_tokens, self.token_scale)

    def read_code(self, values: Mapping[str, Any]) -> ActionNormalizer | FastCode:
        return read_denoising_code(values, self.token_weight)

    def code_notes(self, code: Any, frames: np.ndarray, names: Sequence[str]) -> list[str]:
        return denoising_code_notes(code, self.num_tokens, frames, names)

    def make_head(
        self, model: VisionLanguageModel, code: ActionNormalizer | FastCode
    ) -> DenoisingHead:
        process = FlowMatching(self.num_steps, self.time_alpha, self.time_beta, self.noise_level)
        settings = DenoisingSettings(
            chunk=self.chunk,
            width=self.width,
            intermediate=self.intermediate,
            exploration=self.exploration,
            num_stochastic_steps=self.num_stochastic_steps,
            samples=self.samples,
            stop_gradient_to_vlm=self.stop_gradient_to_vlm,
            min_noise=self.min_noise,
            max_noise=self.max_noise,
            token_weight=self.token_weight,
        )
        return make_denoising_head(model, process, settings, code)
