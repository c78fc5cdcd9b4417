"""The rule that makes images of any shape square, at the model's size."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vla.files.reading import JsonMapping

RESIZE = "resize_with_pad"
"""Name of the rule in policy.json, after openpi's function: scaled as a whole, centred, padded
black."""


def fit_to_square(
    picture: UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """The whole image with its aspect ratio, centred in a black square [size, size, 3].

    Every new pixel is the mean of the pixels that it covers.
    """
    height, width = picture.shape[:2]
    if height == width == size:
        return picture
    longer = max(height, width)
    inner_size = max(1, height * size // longer), max(1, width * size // longer)
    shrunk = Image.fromarray(picture).resize((inner_size[1], inner_size[0]), Image.Resampling.BOX)
    square = np.zeros((size, size, 3), np.uint8)
    top = (size - inner_size[0]) // 2
    left = (size - inner_size[1]) // 2
    square[top : top + inner_size[0], left : left + inner_size[1]] = np.asarray(shrunk)
    return square


def describe_rule_mismatch(policy_spec: JsonMapping, owner: str) -> str | None:
    """A message where a policy was trained by another rule, or names none; None where the rules
    agree."""
    rule = policy_spec.get("resize")
    if rule == RESIZE:
        return None
    clause = "names no rule" if rule is None else f"names {rule!r}"
    return (
        f"{owner} {clause} to make images square, this version uses {RESIZE}: images that are not "
        "square look different from those of its training"
    )


def check_resize(policy_spec: JsonMapping, height: int, width: int, owner: str) -> None:
    """Refuse an image that is not square where the policy was trained by another resize rule.

    Raises:
        ValueError: the policy was trained by another rule, or by a version that named none.
    """
    mismatch = describe_rule_mismatch(policy_spec, "the policy's policy.json")
    if height != width and mismatch:
        raise ValueError(
            f"{owner} has images of {height} x {width} pixels, and {mismatch}; train it again, "
            "or provide square images"
        )
