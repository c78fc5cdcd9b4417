"""The one rule by which pictures of any shape become squares of the model's size, wherever they
come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

RESIZE = "resize_with_pad"
"""The rule's name in policy.json, after openpi's function: shrunk as a whole, centred, black beside
it."""


def fit_to_square(
    picture: UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """The whole picture, its shape kept, in the middle of a black square; the mean of the pixels
    under each new one."""
    height, width = picture.shape[:2]
    if height == width == size:
        return picture
    longer = max(height, width)
    inner = max(1, height * size // longer), max(1, width * size // longer)
    shrunk = Image.fromarray(picture).resize((inner[1], inner[0]), Image.Resampling.BOX)
    square = np.zeros((size, size, 3), np.uint8)
    top = (size - inner[0]) // 2
    left = (size - inner[1]) // 2
    square[top : top + inner[0], left : left + inner[1]] = np.asarray(shrunk)
    return square


def describe_rule_mismatch(policy_spec: Mapping[str, Any], owner: str) -> str | None:
    """A sentence where a policy was trained by another rule, or by a version that named none; None
    where by ours."""
    rule = policy_spec.get("resize")
    if rule == RESIZE:
        return None
    told = "names no rule" if rule is None else f"names {rule!r}"
    return (
        f"{owner} {told} to make pictures square, this version has {RESIZE}: what is not square "
        "is shown "
        "in another way than in its training"
    )


def check_resize(policy_spec: Mapping[str, Any], height: int, width: int, owner: str) -> None:
    """Refuse a picture that the policy's own rule would make square in another way; square ones are
    alike by all.

    Raises:
        ValueError: the policy was trained by another rule, or by a version that named none.
    """
    told = describe_rule_mismatch(policy_spec, "the policy's policy.json")
    if height != width and told:
        raise ValueError(
            f"{owner} shows pictures of {height} x {width} pixels, and {told}; train it again, "
            "or give square pictures"
        )
