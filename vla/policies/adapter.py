"""Adapters: a small Gaussian actor on top of a frozen policy, whose draws are what RL scores.

`NoiseAdapter` draws the initial noise of a frozen flow or diffusion policy, whose chain adds no
further noise (DSRL, Wagenmaker et al. 2025, "Steering Your Diffusion Policy with Latent Space
Reinforcement Learning"). `ResidualAdapter` adds a bounded correction to the likeliest chunk of any
frozen policy (residual RL, Johannink et al. 2019; Policy Decorator, Yuan et al. 2024). Greedy
decisions of either are those of the frozen policy at the start.

The actor's input, kept in the trace, is the normalised summary of the head, proprioception, and for
a correction the frozen policy's chunk. So an update runs the actor alone.

Shapes: `B` decisions, `H` control steps a chunk, `A` action dimensions, `a` of them active, `L = H
a` draws, `F` features, `d` width of the model.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from vla.actions.bins import ActionBins
from vla.actions.normalize import ActionNormalizer
from vla.finite_checks import check_finite
from vla.models.vlm import VisionLanguageModel
from vla.policies.denoising import DenoisingHead
from vla.policies.head import ActionCode, Draws, DrawScores, Head, HeadInput
from vla.types import Observation, Trace

WIDTH = 256
"""Width of the actor's two hidden layers."""
MIN_STD = 0.05
MAX_STD = 2.0
"""Bounds on the standard deviation of the actor's draws."""
FIRST_CORRECTION_STD = 0.5
"""Standard deviation of a correction at the start, before the tanh that bounds it."""


class GaussianActor(nn.Module):
    """An MLP to the means of independent Gaussians, with a learned standard deviation each.

    Means are 0 at the start.
    """

    def __init__(self, num_features: int, num_values: int, first_std: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_features, WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, num_values),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)
        self.log_std = nn.Parameter(torch.full((num_values,), math.log(first_std)))

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B L"]:
        return self.layers(features)

    @property
    def std(self) -> Float[Tensor, "L"]:
        return self.log_std.clamp(math.log(MIN_STD), math.log(MAX_STD)).exp()

    def score(
        self, drawn: Float[Tensor, "B L"], mean: Float[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Log-probabilities and entropies of draws, in nats."""
        std = self.std
        logprobs = -0.5 * ((drawn - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
        entropy = std.log() + 0.5 * math.log(2 * math.pi * math.e)
        return logprobs, entropy.expand_as(logprobs)


class Adapter(nn.Module):
    """What both adapters share: the actor, its features, and the scores of its draws.

    `bound` limits the mean of drawn noise (None: the mean of a correction has no limit, its tanh
    has).
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        chunk: int,
        num_values: int,
        num_extra: int,
        first_std: float,
        bound: float | None,
    ) -> None:
        super().__init__()
        self.chunk = chunk
        self.width = model.width
        self.bound = bound
        num_features = model.width + len(model.proprio_mean) + num_extra
        self.actor = GaussianActor(num_features, chunk * num_values, first_std)

    @property
    def num_draws(self) -> int:
        return len(self.actor.log_std)

    def mean(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B L"]:
        """The likeliest draws."""
        mean = self.actor(features)
        return mean if self.bound is None else self.bound * (mean / self.bound).tanh()

    def sample(
        self, features: Float[Tensor, "B F"], greedy: bool
    ) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Draws and their log-probabilities."""
        mean = self.mean(features)
        drawn = mean if greedy else mean + self.actor.std * torch.randn_like(mean)
        check_finite("draws of the adapter", drawn)
        return drawn, self.actor.score(drawn, mean)[0]

    def score(self, trace: Trace) -> DrawScores:
        """Scores of stored draws under the present weights."""
        features = trace["features"]
        logprobs, entropy = self.actor.score(trace["drawn"], self.mean(features))
        return DrawScores(logprobs, entropy, trace["summary"])

    def features(
        self,
        model: VisionLanguageModel,
        summary: Float[Tensor, "B d"],
        observation: Observation,
        *extra: Float[Tensor, "B _"],
    ) -> Float[Tensor, "B F"]:
        """Input of the actor."""
        normed = functional.layer_norm(summary, summary.shape[-1:])
        return torch.cat([normed, model.normalized_proprio(observation), *extra], dim=-1)


class NoiseAdapter(Adapter):
    """An actor that draws the initial noise of a frozen denoising head: N(0, I) at the start, as
    the head itself."""

    redraws_alone = False
    """A further draw needs the frozen policy's perception."""

    def __init__(self, model: VisionLanguageModel, head: DenoisingHead, noise_bound: float) -> None:
        super().__init__(model, head.chunk, head.normalizer.num_active, 0, 1.0, noise_bound)

    def draw(
        self, head: Head[Any], inputs: HeadInput[Any], observation: Observation, greedy: bool
    ) -> Draws:
        """New decisions; greedy ones start from the likeliest noise."""
        assert isinstance(head, DenoisingHead)
        summary = head.summarize(inputs)
        features = self.features(inputs.model, summary, observation)
        drawn, logprobs = self.sample(features, greedy)
        final = head.denoise(drawn.unflatten(1, (self.chunk, -1)), inputs)
        check_finite("actions", final)
        trace = {"features": features, "summary": summary, "drawn": drawn}
        return Draws(head.normalizer.decode(final), trace, logprobs, real_draws(logprobs), summary)


class ResidualAdapter(Adapter):
    """An actor that corrects the frozen policy's likeliest chunk by scale x tanh(draw), in units of
    normalised actions. The mean correction is 0 at the start.

    Raises:
        ValueError: the action code has no units (`action_units`).
    """

    redraws_alone = True

    def __init__(
        self, model: VisionLanguageModel, head: Head[Any], code: ActionCode, scale: float
    ) -> None:
        normalizer = action_units(code)
        num_values = normalizer.num_active
        num_extra = head.chunk * num_values
        super().__init__(model, head.chunk, num_values, num_extra, FIRST_CORRECTION_STD, None)
        self.normalizer = normalizer
        half = (torch.tensor(normalizer.high) - torch.tensor(normalizer.low)) / 2
        self.register_buffer("reach", scale * half, persistent=False)

    def draw(
        self, head: Head[Any], inputs: HeadInput[Any], observation: Observation, greedy: bool
    ) -> Draws:
        """New decisions around the frozen policy's likeliest chunk."""
        base = head.draw(inputs, greedy=True)
        chunk = self.normalizer.encode(base.action).flatten(1)
        features = self.features(inputs.model, base.summary, observation, chunk)
        return self._correct(features, base.summary, base.action, greedy)

    def draw_again(self, trace: Trace, count: int) -> Draws:
        """`count` further decisions for every row of a trace; those of a row are adjacent."""
        features, summary, base = (
            trace[key].repeat_interleave(count, 0) for key in ("features", "summary", "base")
        )
        return self._correct(features, summary, base, greedy=False)

    def _correct(
        self,
        features: Float[Tensor, "B F"],
        summary: Float[Tensor, "B d"],
        base: Float[Tensor, "B H A"],
        greedy: bool,
    ) -> Draws:
        drawn, logprobs = self.sample(features, greedy)
        action = base.float().clone()
        active = list(self.normalizer.active)
        action[..., active] += self.reach * drawn.tanh().unflatten(1, (self.chunk, -1))
        trace = {"features": features, "summary": summary, "drawn": drawn, "base": base}
        return Draws(action, trace, logprobs, real_draws(logprobs), summary)


def real_draws(logprobs: Float[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    return torch.ones_like(logprobs, dtype=torch.bool)


def action_units(code: object) -> ActionNormalizer:
    """The linear map between physical and normalised actions that an action code implies.

    The range of tokens is that of their outermost bins.

    Raises:
        ValueError: the code is of an unknown kind without a `normalizer`.
    """
    if isinstance(code, ActionBins):
        low = tuple(centers[0] for centers in code.centers)
        high = tuple(centers[-1] for centers in code.centers)
        return ActionNormalizer(code.active, code.constants, low, high)
    normalizer = code if isinstance(code, ActionNormalizer) else getattr(code, "normalizer", None)
    if not isinstance(normalizer, ActionNormalizer):
        raise ValueError(
            f"rl.adapt (residual) needs the scale of actions, and the action code "
            f"{type(code).__name__} has no `normalizer` (vla.actions.normalize.ActionNormalizer): "
            "give it one, or choose rl.adapt=head"
        )
    return normalizer


def make_adapter(
    kind: Literal["noise", "residual"],
    model: VisionLanguageModel,
    head: Head[Any],
    code: ActionCode,
    residual_scale: float,
    noise_bound: float,
) -> NoiseAdapter | ResidualAdapter:
    """The adapter of a kind on a head.

    Raises:
        ValueError: the head does not start from noise, or its actions have no units.
    """
    if kind == "residual":
        return ResidualAdapter(model, head, code, residual_scale)
    if not isinstance(head, DenoisingHead):
        raise ValueError(
            f"rl.adapt (noise) steers the initial noise of a flow or diffusion policy, and "
            f"{type(head).__name__} starts from none: choose rl.adapt=residual"
        )
    return NoiseAdapter(model, head, noise_bound)
