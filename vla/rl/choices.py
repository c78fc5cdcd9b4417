"""Types of settings shared by several algorithms; imports no tensors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vla.ranges import NonNegative

Reduction = Literal["token", "sequence", "constant"]
"""The unit of a loss average (`vla.rl.batch.reduction_weights`)."""
Level = Literal["draw", "decision"]
"""The unit of a likelihood ratio."""
Along = Literal["decision", "draw"]
"""The axis on which rewards are discounted."""
KLEstimator = Literal["k1", "k2", "k3"]
"""Formulas in `vla.rl.kl.kl_terms`."""
KLPlacement = Literal["reward", "loss"]
"""Place of the KL to the reference: subtracted from the rewards, or a term of the loss."""
DualClip = Annotated[float, Field(gt=1, le=1000)]
"""Bound on the loss of a draw with a negative advantage (Ye 2020)."""
EntropyCoefficient = Annotated[NonNegative, Field(le=10)]
