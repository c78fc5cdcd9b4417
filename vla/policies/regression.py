"""Continuous actions in one pass, trained by their absolute error (OpenVLA-OFT, Kim et al. 2025).

Minus the L1 error is the log-likelihood of a Laplace distribution around the prediction. With a
learned scale it becomes a policy for RL: log p(x) = -|x - mean| / scale - log(2 scale), one draw a
number.

Shapes: `B` decisions, `H` control steps a chunk, `A` action dimensions, `a` of them active, `L = H
a` draws, `S` states, `d` width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.actions.action_statistics import MAX_NORMALIZED, describe_widened_scales
from vla.actions.normalize import ActionNormalizer, fit_normalizer
from vla.finite_checks import check_finite
from vla.models.plan_head import ActionReadout
from vla.models.vlm import VisionLanguageModel
from vla.policies.head import Draws, DrawScores, HeadInput
from vla.policies.traits import Cache
from vla.ranges import InstructionLength, Positive, SmallCount, Temperature
from vla.types import Observation, Trace


@dataclass(frozen=True)
class RegressionSettings:
    """Settings of `policy=regression`."""

    cache: ClassVar[Cache | None] = "perceived"
    can_guide: ClassVar[bool] = True
    unused: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    chunk: SmallCount
    instruction_length: InstructionLength
    min_scale: Positive
    temperature: Temperature

    def fit_code(self, chunks: np.ndarray) -> ActionNormalizer:
        return fit_normalizer(chunks[:, 0])

    def read_code(self, values: Mapping[str, Any]) -> ActionNormalizer:
        return ActionNormalizer.from_dict(dict(values))

    def code_notes(self, code: Any, frames: np.ndarray, names: Sequence[str]) -> list[str]:
        return describe_widened_scales(frames, names, MAX_NORMALIZED)

    def make_head(self, model: VisionLanguageModel, code: ActionNormalizer) -> RegressionHead:
        return RegressionHead(model, code, self.chunk, self.min_scale, self.temperature)


class RegressionHead(nn.Module):
    """An MLP on the states of the queries; the context is those states with the plan added.

    `min_scale` is the least scale of the distribution, on the normalised scale of actions.
    """

    cache: Cache | None = "perceived"
    one_prediction = True
    exact = True

    def __init__(
        self,
        model: VisionLanguageModel,
        normalizer: ActionNormalizer,
        chunk: int,
        min_scale: float,
        temperature: float,
    ):
        super().__init__()
        self.normalizer = normalizer
        self.chunk = chunk
        self.min_scale = min_scale
        self.temperature = temperature
        self.readout = ActionReadout(model, chunk)
        values = normalizer.num_active
        self.head = nn.Sequential(
            nn.LayerNorm(model.width),
            nn.Linear(model.width, model.width),
            nn.GELU(),
            nn.Linear(model.width, values),
        )
        self.raw_scale = nn.Parameter(torch.full((chunk, values), -3.0))

    @property
    def num_draws(self) -> int:
        return self.chunk * self.normalizer.num_active

    @property
    def scale(self) -> Float[Tensor, "H a"]:
        """Scale of the Laplace distribution, before the temperature.

        It starts a fortieth of the actions' range above `min_scale`; imitation fits it to the
        errors.
        """
        return self.min_scale + nn.functional.softplus(self.raw_scale)

    def perceive(
        self,
        model: VisionLanguageModel,
        prefix: Float[Tensor, "B P W"],
        observation: Observation,
        dedup: bool,
    ) -> Float[Tensor, "B H d"]:
        """States of the queries."""
        return self.readout.encode(model, prefix, observation)

    def interpret(
        self,
        model: VisionLanguageModel,
        perceived: Float[Tensor, "B H d"],
        observation: Observation,
    ) -> Float[Tensor, "B H d"]:
        return self.readout.interpret(model, perceived, observation)

    def summarize(self, inputs: HeadInput[Tensor]) -> Float[Tensor, "S d"]:
        return inputs.context.mean(1)

    def _score(
        self, drawn: Float[Tensor, "B H a"], means: Float[Tensor, "B H a"]
    ) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Log-probabilities and entropies of a Laplace distribution."""
        scale = self.scale * self.temperature
        normaliser = (2 * scale).log()
        logprobs = -(drawn - means).abs() / scale - normaliser
        return logprobs.flatten(1), (1 + normaliser).expand_as(drawn).flatten(1)

    def _means(self, inputs: HeadInput[Tensor]) -> Float[Tensor, "B H a"]:
        return inputs.expand_to_decisions(inputs.guide(self.head(inputs.context), self.head))

    def draw(self, inputs: HeadInput[Tensor], greedy: bool) -> Draws:
        """New decisions. Greedy: the means themselves."""
        means = self._means(inputs)
        drawn = means if greedy else means + self.scale * self.temperature * draw_laplace(means)
        check_finite("actions", drawn)
        logprobs, _ = self._score(drawn, means)
        return Draws(
            action=self.normalizer.decode(drawn),
            trace={"drawn": drawn},
            logprobs=logprobs,
            mask=torch.ones_like(logprobs, dtype=torch.bool),
            summary=self.summarize(inputs),
        )

    def score(self, inputs: HeadInput[Tensor], trace: Trace) -> DrawScores:
        means = self._means(inputs)
        return DrawScores(*self._score(trace["drawn"], means), self.summarize(inputs))

    def imitation_terms(
        self,
        model: VisionLanguageModel,
        perceived: Float[Tensor, "B H d"],
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        trains_model: bool,
    ) -> tuple[Float[Tensor, "B H"], Bool[Tensor, "B H"]]:
        """Absolute error of every control step plus its negative log-likelihood, means over action
        dimensions."""
        means = self.head(self.interpret(model, perceived, observation))
        error = (means - self.normalizer.encode(actions)).abs()
        # Detached: the likelihood trains the scale alone, predictions are those of L1 training.
        fit = error.detach() / self.scale + (2 * self.scale).log()
        return (error + fit).mean(-1), action_mask

    def perception_parameters(self) -> Iterator[nn.Parameter]:
        yield self.readout.queries


def draw_laplace(like: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """Draws of the Laplace distribution with mean 0 and scale 1, by inverting its cumulative
    distribution."""
    uniform = torch.rand_like(like) - 0.5
    return -uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.5 - 1e-7))
