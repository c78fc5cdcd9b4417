"""The readout of a vision-language model for continuous actions: one state a control step.

One learned query a control step stands behind the instruction, `[prefix | text | queries]`, and
becomes a hidden state. If the model has a plan head, the plan is added to those states.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla.models.action_queries import PlanReader, plan_moments
from vla.models.vlm import VisionLanguageModel
from vla.types import Observation


class ActionReadout(nn.Module):
    """`num_queries` queries for `model`, which start from those of its plan head."""

    def __init__(self, model: VisionLanguageModel, num_queries: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, model.width) * 0.02)
        self.reader = None
        if model.plan is not None:
            nearest = torch.linspace(0, len(model.plan.queries) - 1, num_queries).round().long()
            self.queries.data.copy_(model.plan.queries.detach()[nearest])
            num_numbers = len(model.plan.dimensions)
            proprio_size = len(model.proprio_mean)
            self.reader = PlanReader(num_numbers, proprio_size, num_queries, model.width)

    def encode(
        self,
        model: VisionLanguageModel,
        prefix: Float[Tensor, "B P W"],
        observation: Observation,
        cache: Any = None,
    ) -> Float[Tensor, "B q d"]:
        """Hidden states of the queries; `cache` receives the keys and values of the whole
        sequence."""
        return model.encode_queries(prefix, observation, self.queries, cache)

    def interpret(
        self,
        model: VisionLanguageModel,
        hidden: Float[Tensor, "B q d"],
        observation: Observation,
        stop_gradient_to_vlm: bool = False,
    ) -> Float[Tensor, "B q d"]:
        """States of the queries with label and plan added.

        With `stop_gradient_to_vlm` no gradient reaches the model through the plan.
        """
        if self.reader is None:
            return model.with_advantage_label(hidden, observation)
        # Grounding trains the plan head on states without labels, so the plan is read from those.
        plan = plan_moments(model.plan_logits(hidden))
        labelled = model.with_advantage_label(hidden, observation)
        return hidden + self.reader(
            plan.detach() if stop_gradient_to_vlm else plan,
            model.normalized_proprio(observation),
            labelled,
        )
