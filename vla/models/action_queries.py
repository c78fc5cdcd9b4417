"""Queries that read a picture and an instruction at once: the parallel way out of a vision-language
model.

Each of `q` learned queries stands behind the instruction and becomes a hidden state; each of `a`
learned dimension vectors turns a hidden state into the state of one number, whose token the
language model's own head then names.
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
        """States of numbers from hidden states and the dimensions asked of them."""
        states = hidden + dimensions
        return states + self.mixer(states)

    def forward(self, hidden: Float[Tensor, "B q d"]) -> Float[Tensor, "B q a d"]:
        """The states of all numbers of all queries."""
        return self.mix(
            hidden[:, :, None].expand(-1, -1, len(self.dimensions), -1),
            self.dimensions.expand(*hidden.shape[:2], -1, -1),
        )

    @torch.no_grad()
    def initialize_from(self, other: ActionQueries) -> None:
        """Take over what another head's queries have learned to look at; a query between two of its
        own takes the nearer.
        """
        nearest = torch.linspace(0, len(other.queries) - 1, len(self.queries)).round().long()
        self.queries.copy_(other.queries[nearest])
        self.mixer.load_state_dict(other.mixer.state_dict())


class PlanReader(nn.Module):
    """What a plan means for every query: an MLP from its numbers, how sure they are, what is felt,
    and the queries.

    A plan is a distribution over places for each of `a` numbers. Its mean and spread enter, both on
    a scale on which the whole line of places is [-1, 1]; thinking first and acting on the thought
    is the embodied chain of thought of Zawalski et al. 2024, here without writing it out: one pass,
    and a gradient through the thought.
    """

    HIDDEN = 256

    def __init__(self, num_numbers: int, num_felt: int, num_queries: int, width: int):
        super().__init__()
        self.num_queries = num_queries
        self.layers = nn.Sequential(
            nn.Linear(2 * num_numbers + num_felt + width, self.HIDDEN),
            nn.GELU(),
            nn.Linear(self.HIDDEN, self.HIDDEN),
            nn.GELU(),
            nn.Linear(self.HIDDEN, num_queries * width),
        )

    def forward(
        self, plan: Float[Tensor, "B n"], felt: Float[Tensor, "B s"], hidden: Float[Tensor, "B p d"]
    ) -> Float[Tensor, "B q d"]:
        """What to add to the state of every query. `plan` is `plan_moments`; `hidden` the queries
        that said it."""
        read = self.layers(torch.cat([plan, felt, hidden.mean(1)], dim=-1))
        return read.unflatten(-1, (self.num_queries, -1))


PLACE_GAIN = 3.0
"""Places that matter lie within a third of the line; this brings them to [-1, 1]."""


def plan_moments(logits: Float[Tensor, "B p a c"]) -> Float[Tensor, "B n"]:
    """Mean and spread of every number of a plan, n = 2a; `p` queries have said it, and are
    averaged."""
    places = torch.linspace(-PLACE_GAIN, PLACE_GAIN, logits.shape[-1], device=logits.device)
    chances = logits.softmax(-1).mean(1)
    mean = chances @ places
    spread = (chances * (places - mean[..., None]) ** 2).sum(-1).clamp(min=1e-6).sqrt()
    return torch.cat([mean, spread], dim=-1)
