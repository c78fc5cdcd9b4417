"""Checks that a policy's decisions are finite; on a robot, NaN logits would move it like any
others."""

from __future__ import annotations

from torch import Tensor


def check_finite(what: str, values: Tensor) -> None:
    """Refuse NaN and infinity in `values`, in one pass.

    Raises FloatingPointError.
    """
    if not bool(values.isfinite().all()):
        raise FloatingPointError(
            f"the policy refuses to act: its {what} are not finite. Its weights or its "
            "observation are damaged: "
            "choose another checkpoint, or look at the observation"
        )


def check_distribution(logprobs: Tensor) -> None:
    """Check log-probabilities [..., K]; softmax spreads a NaN, so one entry suffices."""
    check_finite("log-probabilities", logprobs[..., 0].exp())
