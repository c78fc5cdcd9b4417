"""Perturbations: evaluation starts that differ from training in one property.

A perturbation replaces ranges of `sim.randomize.Randomization`. A seed keeps its objects, their
positions and their names, so that evaluations are compared start by start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

PerturbationName = Literal["none", "camera", "light", "texture", "wording", "start"]


@dataclass(frozen=True)
class Perturbation:
    """A changed property: `ranges` replace those of `Randomization`, `paraphrased` the
    sentences."""

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
"""The perturbations by name; metres, radians and shares of full brightness."""
