"""Evaluation sets that differ from training in one thing: camera, light, shades, words, or where
the hand starts.

A perturbation replaces ranges of `sim.randomize.Randomization`, whatever the run had there; a seed
keeps its objects, their places and their names: sets are compared start by start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Perturbation:
    """What differs: `ranges` replace those of `Randomization`; `paraphrased` instructions use other
    words."""

    ranges: Mapping[str, Any] = field(default_factory=dict)
    paraphrased: bool = False


PERTURBATIONS: dict[str, Perturbation] = {
    "none": Perturbation(),
    "camera": Perturbation({"camera_position_jitter": 0.02, "camera_angle_jitter": 0.03}),
    "light": Perturbation({"light_jitter": 0.6, "light_tint": 0.25, "light_angle_jitter": 0.5}),
    "texture": Perturbation({"color_jitter": 0.08, "surface_jitter": 0.2}),
    "wording": Perturbation(paraphrased=True),
    "start": Perturbation({"hand_xy": 0.11, "hand_height": (0.09, 0.24), "hand_yaw": 0.8}),
}
"""By name; metres, radians and shares of full brightness."""
