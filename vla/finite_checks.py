"""What a policy decides is finite, or it refuses to act: on a robot, NaN logits would be a motion
like any other."""

from __future__ import annotations

from torch import Tensor


def check_finite(what: str, values: Tensor) -> None:
    """Raise FloatingPointError where `values`, which lead to a decision, hold NaN or infinity: one
    pass over them."""
    if not bool(values.isfinite().all()):
        raise FloatingPointError(
            f"the policy refuses to act: its {what} are not finite. Its weights or what it was "
            "shown are damaged: "
            "choose another checkpoint, or look at the observation"
        )


def check_distribution(logprobs: Tensor) -> None:
    """The same of log-probabilities [..., K] over what can be drawn: where one is NaN, softmax made
    all of them so."""
    check_finite("log-probabilities", logprobs[..., 0].exp())
