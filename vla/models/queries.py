"""Queries that read a picture and an instruction at once: the parallel way out of a vision-language model.

Each of `q` learned queries stands behind the instruction and becomes a hidden state; each of `a` learned dimension
vectors turns a hidden state into the state of one number, whose token the language model's own head then names.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class QueryHead(nn.Module):
    """`queries` [q, d], `dimensions` [a, d], and an MLP that mixes the two."""

    def __init__(self, num_queries: int, num_dimensions: int, width: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, width) * 0.02)
        self.dimensions = nn.Parameter(torch.randn(num_dimensions, width) * 0.02)
        self.mixer = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def mix(self, hidden: Float[Tensor, "*rows d"], dimensions: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
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
    def start_from(self, other: QueryHead) -> None:
        """Take over what another head's queries have learned to look at; a query between two of its own takes the
        nearer.
        """
        nearest = torch.linspace(0, len(other.queries) - 1, len(self.queries)).round().long()
        self.queries.copy_(other.queries[nearest])
        self.mixer.load_state_dict(other.mixer.state_dict())
