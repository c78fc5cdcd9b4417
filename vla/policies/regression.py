"""Actions as numbers in one pass (OpenVLA-OFT, Kim et al. 2025): trained by their absolute error.

An L1 error is the log-likelihood of a Laplace distribution around the prediction; with a learned
scale it is a policy that reinforcement learning can draw from: log p(x) = -|x - mean| / scale -
log(2 scale), one draw a number.

Shapes: `H` control steps a chunk, `A` action dimensions, `a` of them active, `L = H a` draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.actions.normalize import ActionNormalizer
from vla.data.labels import without_label
from vla.finite import check_finite
from vla.models.heads import ValueHead
from vla.models.readout import Readout
from vla.models.vlm import VisionLanguageModel
from vla.types import Decision, Observation, Scores, Trace


class RegressionPolicy(nn.Module):
    """A vision-language model with an MLP on the states of its queries. What is frozen is computed
    once: a trace carries it (`cached`). `min_scale` keeps draws apart from each other, in units of
    the normalised action. With `guidance` other than 1, it acts that many times as far as the label
    of the instruction leads.
    """

    can_probe = True

    def __init__(
        self,
        model: VisionLanguageModel,
        normalizer: ActionNormalizer,
        chunk: int,
        min_scale: float,
        temperature: float,
        detach_critic: bool,
    ):
        super().__init__()
        self.model, self.normalizer, self.chunk = model, normalizer, chunk
        self.min_scale, self.temperature = min_scale, temperature
        self.cached: Literal["nothing", "prefix", "queries"] = "nothing"
        self.guidance = 1.0
        self.readout = Readout(model, chunk)
        values = normalizer.num_active
        self.head = nn.Sequential(
            nn.LayerNorm(model.width),
            nn.Linear(model.width, model.width),
            nn.GELU(),
            nn.Linear(model.width, values),
        )
        self.raw_scale = nn.Parameter(torch.full((chunk, values), -3.0))
        self.value_head = ValueHead(model.width, detach_critic)

    @property
    def num_draws(self) -> int:
        return self.chunk * self.normalizer.num_active

    @property
    def scale(self) -> Float[Tensor, "H a"]:
        """Of the Laplace distribution, before the temperature; a fortieth of the actions' range
        above its least at first, and what the errors of imitation make of it then.
        """
        return self.min_scale + nn.functional.softplus(self.raw_scale)

    def perceive(
        self, observation: Observation, trace: Trace | None = None
    ) -> Float[Tensor, "B H d"]:
        """What the queries have seen; from the trace, where that carries what is frozen."""
        kept = trace or {}
        if "hidden" in kept:
            return kept["hidden"]
        prefix = kept["prefix"] if "prefix" in kept else self.model.prefix(observation)
        return self.readout.see(self.model, prefix, observation)

    def _means(
        self, observation: Observation, hidden: Float[Tensor, "B H d"]
    ) -> tuple[Float[Tensor, "B H a"], Float[Tensor, "B"]]:
        states = self.readout.interpret(self.model, hidden, observation)
        return self.head(states), self.value_head(states.mean(1))

    def _guided(
        self, observation: Observation, hidden: Float[Tensor, "B H d"]
    ) -> tuple[Float[Tensor, "B H a"], Float[Tensor, "B"]]:
        """The means to act and to score with; what the queries have seen is the same with a label
        and without."""
        means, values = self._means(observation, hidden)
        if self.guidance != 1:
            plain, _ = self._means(without_label(observation), hidden)
            means = plain + self.guidance * (means - plain)
        return means, values

    def _scores(
        self,
        drawn: Float[Tensor, "B H a"],
        means: Float[Tensor, "B H a"],
        values: Float[Tensor, "B"],
    ) -> Scores:
        scale = self.scale * self.temperature
        normaliser = (2 * scale).log()
        logprobs = -(drawn - means).abs() / scale - normaliser
        return Scores(logprobs.flatten(1), (1 + normaliser).expand_as(drawn).flatten(1), values)

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        """Draw a chunk of actions [B, H, A] (physical units) for every row; greedy: the prediction
        itself."""
        prefix = self.model.prefix(observation)
        hidden = self.perceive(observation, {"prefix": prefix})
        means, values = self._guided(observation, hidden)
        frozen = {"nothing": {}, "prefix": {"prefix": prefix}, "queries": {"hidden": hidden}}
        return self._drawn(means, values, greedy, frozen[self.cached])

    def _drawn(
        self, means: Float[Tensor, "B H a"], values: Float[Tensor, "B"], greedy: bool, kept: Trace
    ) -> Decision:
        drawn = means if greedy else means + self.scale * self.temperature * draw_laplace(means)
        check_finite("actions", drawn)
        logprobs = self._scores(drawn, means, values).logprobs
        return Decision(
            action=self.normalizer.decode(drawn),
            trace={"drawn": drawn} | dict(kept),
            logprobs=logprobs,
            mask=torch.ones_like(logprobs, dtype=torch.bool),
            values=values,
        )

    @property
    def can_redraw(self) -> bool:
        return self.cached == "queries"

    @torch.no_grad()
    def redraw(self, observation: Observation, trace: Trace, count: int) -> Decision:
        """`count` more decisions for every row, from what its trace has perceived; those of a row
        stand together."""
        found = (*self._guided(observation, trace["hidden"]), trace["hidden"])
        means, values, hidden = (part.repeat_interleave(count, 0) for part in found)
        return self._drawn(means, values, False, {"hidden": hidden})

    def score(self, observation: Observation, trace: Trace) -> Scores:
        """Log-probabilities [B, L], entropies [B, L] and values [B] of stored draws under the
        present weights."""
        return self._scores(
            trace["drawn"], *self._guided(observation, self.perceive(observation, trace))
        )

    def imitation_terms(
        self,
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        hidden: Float[Tensor, "B H d"] | None = None,
    ) -> tuple[Float[Tensor, "B H"], Bool[Tensor, "B H"]]:
        """Absolute error of every control step, a mean over its values, plus the likelihood of that
        error, which moves the scale alone: predictions are those of plain L1 training. `hidden`
        where `perceive` has run.
        """
        means, _ = self._means(
            observation, self.perceive(observation) if hidden is None else hidden
        )
        error = (means - self.normalizer.encode(actions)).abs()
        fit = error.detach() / self.scale + (2 * self.scale).log()
        return (error + fit).mean(-1), action_mask

    @torch.no_grad()
    def value(self, observation: Observation) -> Float[Tensor, "B"]:
        """The critic's estimate of the return from here."""
        return self._means(observation, self.perceive(observation))[1]

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        return self.value_head.parameters()

    def freeze_prefix(self) -> None:
        """Stop training what the prefix depends on; traces carry the prefix from now on."""
        for parameter in self.model.prefix_parameters():
            parameter.requires_grad_(False)
        self.cached = "prefix"

    def freeze_model(self) -> None:
        """Stop training all but the head; traces carry what the queries have seen from now on."""
        for parameter in self.model_parameters():
            parameter.requires_grad_(False)
        self.cached = "queries"

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """What `perceive` depends on: all but the head."""
        yield from self.model.parameters()
        yield self.readout.queries


def draw_laplace(like: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """Draws of the Laplace distribution with mean 0 and scale 1, by inverting its cumulative
    distribution."""
    uniform = torch.rand_like(like) - 0.5
    return -uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.5 - 1e-7))
