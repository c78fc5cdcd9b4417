"""The projector from vision features to the language model's width."""

from __future__ import annotations

from torch import nn


def mlp_projector(in_width: int, out_width: int) -> nn.Sequential:
    """Two-layer GELU MLP (Liu et al. 2023, LLaVA-1.5) behind a LayerNorm: [..., in_width] -> [...,
    out_width]."""
    return nn.Sequential(
        nn.LayerNorm(in_width),
        nn.Linear(in_width, out_width),
        nn.GELU(),
        nn.Linear(out_width, out_width),
    )
