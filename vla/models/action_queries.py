"""Learned queries behind an instruction, for parallel decoding, and the reader of a plan.

Each of `q` queries becomes a hidden state. Each of `a` learned dimension vectors turns a hidden
state into the state of one number. The language model's own head gives the logits of its token.

Shapes: `B` rows, `q` and `p` queries, `a` dimensions, `c` places, `d` width of the model, `s`
numbers of proprioception, `n` plan moments (2 a).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ActionQueries(nn.Module):
    """`queries` [q, d], `dimensions` [a, d], and an MLP that mixes the two."""

    def __init__(self, num_queries: int, num_dimensions: int, width: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, width) * 0.02)
        self.dimensions = nn.Parameter(torch.randn(num_dimensions, width) * 0.02)
        self.mixer = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def mix(
        self, hidden: Float[Tensor, "*rows d"], dimensions: Float[Tensor, "*rows d"]
    ) -> Float[Tensor, "*rows d"]:
        """States of numbers from hidden states and dimension vectors."""
        states = hidden + dimensions
        return states + self.mixer(states)

    def forward(self, hidden: Float[Tensor, "B q d"]) -> Float[Tensor, "B q a d"]:
        """States of all numbers of all queries."""
        return self.mix(
            hidden[:, :, None].expand(-1, -1, len(self.dimensions), -1),
            self.dimensions.expand(*hidden.shape[:2], -1, -1),
        )

    @torch.no_grad()
    def initialize_from(self, other: ActionQueries) -> None:
        """Copy another head's queries and mixer; each query takes the nearest of the other's."""
        nearest = torch.linspace(0, len(other.queries) - 1, len(self.queries)).round().long()
        self.queries.copy_(other.queries[nearest])
        self.mixer.load_state_dict(other.mixer.state_dict())


class PlanReader(nn.Module):
    """An MLP from the plan, proprioception and the queries' states to an offset for every query.

    A plan is a distribution over places for each of `a` numbers. Its mean and standard deviation
    enter (`plan_moments`). As in embodied chain of thought (Zawalski et al. 2024) the policy plans
    before it acts, but no token is written: it takes one pass, and the gradient flows through the
    plan.
    """

    HIDDEN = 256

    def __init__(self, num_numbers: int, proprio_size: int, num_queries: int, width: int):
        super().__init__()
        self.num_queries = num_queries
        self.layers = nn.Sequential(
            nn.Linear(2 * num_numbers + proprio_size + width, self.HIDDEN),
            nn.GELU(),
            nn.Linear(self.HIDDEN, self.HIDDEN),
            nn.GELU(),
            nn.Linear(self.HIDDEN, num_queries * width),
        )

    def forward(
        self,
        plan: Float[Tensor, "B n"],
        proprio: Float[Tensor, "B s"],
        hidden: Float[Tensor, "B p d"],
    ) -> Float[Tensor, "B q d"]:
        """Offsets for the states of the queries. `plan` is `plan_moments`; `hidden` are the states
        that the plan was predicted from."""
        offsets = self.layers(torch.cat([plan, proprio, hidden.mean(1)], dim=-1))
        return offsets.unflatten(-1, (self.num_queries, -1))


PLACE_GAIN = 3.0
"""Scale of the line of places: the third of it that objects occupy becomes [-1, 1]."""


def plan_moments(logits: Float[Tensor, "B p a c"]) -> Float[Tensor, "B n"]:
    """Mean and standard deviation of every number of a plan, n = 2a.

    The distributions that `p` queries predict are averaged first.
    """
    places = torch.linspace(-PLACE_GAIN, PLACE_GAIN, logits.shape[-1], device=logits.device)
    probabilities = logits.softmax(-1).mean(1)
    mean = probabilities @ places
    spread = (probabilities * (places - mean[..., None]) ** 2).sum(-1).clamp(min=1e-6).sqrt()
    return torch.cat([mean, spread], dim=-1)
