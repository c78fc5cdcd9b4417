"""Value heads from hidden states: a scalar, or the distribution over returns of RECAP."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ValueHead(nn.Module):
    """A two-layer MLP from a hidden state to a state value, zero at the start.

    The first advantages are then the rewards themselves. `detach` keeps the gradient out of the
    shared backbone (measured: a critic that trains the shared weights at the policy's learning rate
    wrecks the policy).
    """

    def __init__(self, width: int, detach: bool):
        super().__init__()
        self.detach = detach
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, hidden: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
        return self.layers(hidden.detach() if self.detach else hidden).squeeze(-1)


class BinnedValue(nn.Module):
    """A two-layer MLP to a distribution over returns, as logits of bins (Bellemare et al. 2017;
    pi*0.6 has 201)."""

    def __init__(self, width: int, num_bins: int):
        super().__init__()
        hidden = 256
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, num_bins)
        )

    def forward(self, features: Float[Tensor, "*rows f"]) -> Float[Tensor, "*rows K"]:
        return self.layers(features)
