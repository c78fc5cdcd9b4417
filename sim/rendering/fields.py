"""The fields of MuJoCo that decide a picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]
"""Arrays by the name of a field or a camera."""

POSE_FIELDS = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir")
"""Fields of `MjData` with the poses of everything: all that a renderer needs of the physics."""

LOOK_FIELDS = (
    "geom_rgba",
    "geom_size",
    "geom_type",
    "geom_matid",
    "geom_group",
    "mat_rgba",
    "mat_emission",
    "mat_texid",
    "mat_texrepeat",
    "cam_fovy",
    "cam_sensorsize",
    "cam_intrinsic",
    "light_active",
    "light_type",
    "light_ambient",
    "light_diffuse",
    "light_attenuation",
    "light_cutoff",
    "light_exponent",
)
"""Fields of `MjModel` that change the picture when `Batch.expand` gave each environment its own
values."""
