"""Choices and ranges that settings of several algorithms share; needs no tensors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vla.ranges import NonNegative

Reduction = Literal["token", "sequence", "constant"]
"""What a loss is averaged over (`vla.rl.batch.reduction_weights`)."""
Level = Literal["draw", "decision"]
"""What has a likelihood ratio of its own."""
Along = Literal["decision", "draw"]
"""The axis on which rewards are discounted."""
KLEstimator = Literal["k1", "k2", "k3"]
"""Formulas in `vla.rl.kl.kl_terms`."""
KLPlacement = Literal["reward", "loss"]
"""Where the KL to the reference enters: taken off the rewards, or a term of the loss."""
DualClip = Annotated[float, Field(gt=1, le=1000)]
"""Bound on the loss of a draw with a negative advantage (Ye 2020)."""
EntropyCoefficient = Annotated[NonNegative, Field(le=10)]
