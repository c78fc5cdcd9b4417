"""A Gaussian action head: one mean a number, and a learned standard deviation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vla.actions.normalize import ActionNormalizer, fit_normalizer
from vla.models.plan_head import ActionReadout
from vla.models.vlm import VisionLanguageModel
from vla.policies.head import Draws, DrawScores, HeadInput
from vla.policies.traits import Cache
from vla.ranges import InstructionLength, Positive, SmallCount
from vla.types import Observation, Trace


@dataclass(frozen=True)
class GaussianSettings:
    """Settings of `policy=gaussian`."""

    cache: ClassVar[Cache | None] = "perceived"
    can_guide: ClassVar[bool] = True
    unused: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    chunk: SmallCount
    instruction_length: InstructionLength
    min_std: Positive

    def fit_code(self, chunks: np.ndarray) -> ActionNormalizer:
        return fit_normalizer(chunks[:, 0])

    def read_code(self, values: Mapping[str, Any]) -> ActionNormalizer:
        return ActionNormalizer.from_dict(dict(values))

    def code_notes(self, code: Any, frames: np.ndarray, names: Sequence[str]) -> list[str]:
        return []

    def make_head(self, model: VisionLanguageModel, code: ActionNormalizer) -> GaussianHead:
        return GaussianHead(model, code, self.chunk, self.min_std)


class GaussianHead(nn.Module):
    """A linear layer on the states of the queries gives the means."""

    cache: Cache | None = "perceived"
    one_prediction = True
    exact = True
    temperature = 1.0

    def __init__(
        self, model: VisionLanguageModel, normalizer: ActionNormalizer, chunk: int, min_std: float
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.chunk = chunk
        self.min_std = min_std
        self.readout = ActionReadout(model, chunk)
        self.means = nn.Linear(model.width, normalizer.num_active)
        self.raw_std = nn.Parameter(torch.full((chunk, normalizer.num_active), -2.0))

    @property
    def num_draws(self) -> int:
        return self.chunk * self.normalizer.num_active

    @property
    def std(self) -> Tensor:
        return self.min_std + nn.functional.softplus(self.raw_std)

    def perceive(
        self, model: VisionLanguageModel, prefix: Tensor, observation: Observation, dedup: bool
    ) -> Tensor:
        return self.readout.encode(model, prefix, observation)

    def interpret(
        self, model: VisionLanguageModel, perceived: Tensor, observation: Observation
    ) -> Tensor:
        return self.readout.interpret(model, perceived, observation)

    def summarize(self, inputs: HeadInput[Tensor]) -> Tensor:
        return inputs.context.mean(1)

    def draw(self, inputs: HeadInput[Tensor], greedy: bool) -> Draws:
        means = self._means(inputs)
        drawn = means if greedy else means + self.std * torch.randn_like(means)
        logprobs, _ = self._log_density(drawn, means)
        return Draws(
            action=self.normalizer.decode(drawn),
            trace={"drawn": drawn},
            logprobs=logprobs,
            mask=torch.ones_like(logprobs, dtype=torch.bool),
            summary=self.summarize(inputs),
        )

    def score(self, inputs: HeadInput[Tensor], trace: Trace) -> DrawScores:
        logprobs, entropy = self._log_density(trace["drawn"], self._means(inputs))
        return DrawScores(logprobs, entropy, self.summarize(inputs))

    def imitation_terms(
        self,
        model: VisionLanguageModel,
        perceived: Tensor,
        observation: Observation,
        actions: Tensor,
        action_mask: Tensor,
        trains_model: bool,
    ) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of every control step."""
        means = self.means(self.interpret(model, perceived, observation))
        logprobs, _ = self._log_density(self.normalizer.encode(actions), means)
        return -logprobs.unflatten(1, (self.chunk, -1)).sum(-1), action_mask

    def perception_parameters(self) -> Iterator[nn.Parameter]:
        yield self.readout.queries

    def _means(self, inputs: HeadInput[Tensor]) -> Tensor:
        return inputs.expand_to_decisions(inputs.guide(self.means(inputs.context), self.means))

    def _log_density(self, values: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """Log-densities and entropies of all numbers, [B, H a] each."""
        constant = 0.5 * math.log(2 * math.pi)
        logprobs = -0.5 * ((values - means) / self.std).square() - self.std.log() - constant
        entropy = (self.std.log() + constant + 0.5).expand_as(values)
        return logprobs.flatten(1), entropy.flatten(1)
