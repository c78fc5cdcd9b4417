"""The objects: colours, block shapes and pad shapes, with their sizes in metres."""

from __future__ import annotations

import math
from dataclasses import dataclass

BLOCK_HALF_HEIGHT = 0.02
PAD_HALF_HEIGHT = 0.001

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.10, 0.25, 0.90),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.50, 0.10, 0.65),
    "orange": (0.98, 0.48, 0.05),
}


@dataclass(frozen=True)
class Shape:
    """A shape of a block or a pad.

    Attributes:
        geom: "box" or "cylinder", its primitive.
        size: MuJoCo's size of that primitive (half extents; radius and half height).
        symmetry: smallest rotation about the vertical (radians) that looks the same; 0: any does.
        grasp_width: distance (metres) between the fingers of a well aligned grasp.
    """

    geom: str
    size: tuple[float, float, float]
    symmetry: float
    grasp_width: float


BLOCK_SHAPES: dict[str, Shape] = {
    "cube": Shape("box", (0.02, 0.02, BLOCK_HALF_HEIGHT), math.pi / 2, 0.04),
    "cylinder": Shape("cylinder", (0.02, BLOCK_HALF_HEIGHT, 0.0), 0.0, 0.04),
    "brick": Shape("box", (0.032, 0.018, BLOCK_HALF_HEIGHT), math.pi, 0.036),
}

PAD_SHAPES: dict[str, Shape] = {
    "square": Shape("box", (0.034, 0.034, PAD_HALF_HEIGHT), math.pi / 2, 0.0),
    "disc": Shape("cylinder", (0.038, PAD_HALF_HEIGHT, 0.0), 0.0, 0.0),
}

GEOM_KINDS = ("box", "cylinder")
HIDDEN_SIZE = (0.0005, 0.0005, 0.0005)
"""Size of a geom that an object does not show: far inside the one it shows."""
