"""A verifier of a user's package."""

from __future__ import annotations

from vla.rewards.sample import Sample


def even_length(sample: Sample) -> float:
    """1 when the completion has an even number of characters."""
    return float(len(sample.completion) % 2 == 0)
