"""Discretised action tokens (RT-2): draws, scores and cross-entropy over the vocabulary's last ids.

`decoding="parallel"` takes one query a control step and predicts all its action tokens in one pass
(OpenVLA-OFT). `"autoregressive"` decodes token after token (`autoregressive_token.py`). Only ids
that are bins of a dimension have a probability, at the policy's temperature; scoring applies the
same restriction and temperature.

Shapes: `B` decisions, `H` control steps a chunk, `A` action dimensions, `a` of them active, `L = H
a` draws, `K` ids a dimension, `S` states, `q` queries, `d` width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.actions.action_statistics import describe_rare_jumps
from vla.actions.bins import OUTLIER_DISTANCE, ActionBins, fit_bins
from vla.models.vlm import VisionLanguageModel
from vla.policies.action_tokens import (
    add_plan,
    draw_ids,
    make_queries,
    reserve_action_ids,
    restrict_to_valid,
    score_ids,
)
from vla.policies.autoregressive_token import AutoregressiveTokenHead
from vla.policies.head import Draws, DrawScores, Head, HeadInput
from vla.policies.traits import Cache
from vla.ranges import Bins, InstructionLength, SmallCount, Temperature
from vla.types import Observation, Trace


@dataclass(frozen=True)
class TokenSettings:
    """Settings of `policy=token`."""

    unused: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    chunk: SmallCount
    num_bins: Bins
    binning: Literal["quantile", "uniform"]
    decoding: Literal["parallel", "autoregressive"]
    temperature: Temperature
    instruction_length: InstructionLength

    @property
    def cache(self) -> Cache | None:
        return "perceived" if self.decoding == "parallel" else None

    @property
    def can_guide(self) -> bool:
        return self.decoding == "parallel"

    def fit_code(self, chunks: np.ndarray) -> ActionBins:
        return fit_bins(chunks[:, 0], self.num_bins, self.binning)

    def read_code(self, values: Mapping[str, Any]) -> ActionBins:
        return ActionBins.from_dict(dict(values))

    def code_notes(self, code: Any, frames: np.ndarray, names: Sequence[str]) -> list[str]:
        jumps = describe_rare_jumps(frames, names, OUTLIER_DISTANCE)
        return [f"{jump}: far values have bins of their own" for jump, _ in jumps]

    def make_head(self, model: VisionLanguageModel, code: ActionBins) -> Head[Any]:
        if self.decoding == "parallel":
            return TokenHead(model, code, self.chunk, self.temperature)
        return AutoregressiveTokenHead(model, code, self.chunk, self.temperature)


class TokenHead(nn.Module):
    """Parallel decoding: the state of one query a control step gives the tokens of all dimensions.

    The context is the states of the queries with the plan added.
    """

    cache: Cache | None = "perceived"
    one_prediction = True
    exact = True

    def __init__(
        self, model: VisionLanguageModel, bins: ActionBins, chunk: int, temperature: float
    ):
        super().__init__()
        self.bins = bins
        self.chunk = chunk
        self.temperature = temperature
        self.first_id = reserve_action_ids(model, bins, temperature)
        self.head, self.reader = make_queries(model, chunk, bins.num_active)
        self.register_buffer("valid", bins.valid_ids(), persistent=False)

    @property
    def num_draws(self) -> int:
        return self.chunk * self.bins.num_active

    def perceive(
        self,
        model: VisionLanguageModel,
        prefix: Float[Tensor, "B P W"],
        observation: Observation,
        dedup: bool,
    ) -> Float[Tensor, "B q d"]:
        """States of the queries."""
        return model.encode_queries(prefix, observation, self.head.queries)

    def interpret(
        self,
        model: VisionLanguageModel,
        perceived: Float[Tensor, "B q d"],
        observation: Observation,
    ) -> Float[Tensor, "B q d"]:
        return add_plan(self.reader, model, perceived, observation)

    def summarize(self, inputs: HeadInput[Tensor]) -> Float[Tensor, "S d"]:
        return inputs.context.mean(1)

    def _distribution(self, inputs: HeadInput[Tensor]) -> Float[Tensor, "S L K"]:
        """Log-probabilities of all draws, from one pass over the states."""

        def logits(states: Tensor) -> Tensor:
            numbers = self.head(states).flatten(1, 2)
            return inputs.model.backbone.logits(numbers, self.first_id)

        guided = inputs.guide(logits(inputs.context), logits)
        return restrict_to_valid(guided, self.valid, self.temperature)

    def draw(self, inputs: HeadInput[Tensor], greedy: bool) -> Draws:
        distribution = inputs.expand_to_decisions(self._distribution(inputs))
        ids = draw_ids(distribution, greedy)
        return Draws(
            action=self.bins.decode(ids.unflatten(1, (self.chunk, -1))),
            trace={"ids": ids},
            logprobs=distribution.gather(-1, ids[..., None])[..., 0],
            mask=torch.ones_like(ids, dtype=torch.bool),
            summary=self.summarize(inputs),
        )

    def score(self, inputs: HeadInput[Tensor], trace: Trace) -> DrawScores:
        distribution = self._distribution(inputs)
        logprobs, entropy = score_ids(distribution, trace["ids"], inputs.rows)
        return DrawScores(logprobs, entropy, self.summarize(inputs))

    def imitation_terms(
        self,
        model: VisionLanguageModel,
        perceived: Float[Tensor, "B q d"],
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        trains_model: bool,
    ) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Cross-entropy of every demonstrated action token."""
        inputs = HeadInput(model, self.interpret(model, perceived, observation))
        ids = self.bins.encode(actions).flatten(1)
        logprobs, _ = score_ids(self._distribution(inputs), ids)
        return -logprobs, action_mask.repeat_interleave(self.bins.num_active, dim=1)

    def perception_parameters(self) -> Iterator[nn.Parameter]:
        yield self.head.queries
