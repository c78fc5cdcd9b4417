"""Colours, shapes, friction, light and offsets of the camera poses per environment.

The functions write them into the expanded (per-environment) fields of MuJoCo's model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.robots.rotations import multiply_quats, quat_to_matrix, rpy_to_quat
from sim.scenes.objects import BLOCK_SHAPES, COLORS, GEOM_KINDS, HIDDEN_SIZE, PAD_SHAPES, Shape

if TYPE_CHECKING:
    import mujoco

COLOR_NAMES = tuple(COLORS)
BLOCK_SHAPE_NAMES = tuple(BLOCK_SHAPES)
PAD_SHAPE_NAMES = tuple(PAD_SHAPES)

SURFACES = ("table", "floor")
"""Geoms of the surroundings whose colour may vary."""
ALWAYS_VARIED = ("geom_rgba", "geom_size")


@dataclass
class Looks:
    """The colour and shape of every object, as indices into the names.

    Integers [n, num_blocks] of blocks and [n, num_pads] of pads.
    """

    block_color: np.ndarray
    block_shape: np.ndarray
    pad_color: np.ndarray
    pad_shape: np.ndarray


@dataclass(frozen=True)
class Surroundings:
    """Everything beside the objects that may vary, per environment.

    Attributes:
        rgb: shade of every colour of `COLORS` [n, num_colors, 3].
        friction: sliding friction of the blocks [n].
        lamp: brightness of the lamp [n], relative to the scene as built.
        camera_offset: metres [n, num_cameras, 3] in the frame that the camera is fixed to.
        camera_turn: roll, pitch, yaw [n, num_cameras, 3] (radians) about the camera's own axes.
        tint: brightness of the lamp's red, green and blue [n, 3], relative to the scene as built.
        lamp_turn: rotation [n, 2] (radians) of the lamp's direction about the world's x and y.
        surfaces: change of the colour of each of `SURFACES` [n, surfaces, 3].
    """

    rgb: np.ndarray
    friction: np.ndarray
    lamp: np.ndarray
    camera_offset: np.ndarray
    camera_turn: np.ndarray
    tint: np.ndarray
    lamp_turn: np.ndarray
    surfaces: np.ndarray


def geom_ids(model: mujoco.MjModel, kind: str, count: int) -> np.ndarray:
    """Geom ids [count, len(GEOM_KINDS)] of the objects of a kind, "block" or "pad"."""
    ids = [
        [model.geom(f"{kind}_{i}_{primitive}").id for primitive in GEOM_KINDS] for i in range(count)
    ]
    return np.array(ids, dtype=np.int64).reshape(count, len(GEOM_KINDS))


def write_objects(
    fields: dict[str, np.ndarray],
    ids: np.ndarray,
    geoms: np.ndarray,
    shapes: tuple[Shape, ...],
    color: np.ndarray,
    shape: np.ndarray,
    rgb: np.ndarray,
) -> None:
    """Write colours and sizes of the `geoms` [num_objects, kinds] of the environments `ids` [n].

    One of an object's geoms takes the size of its shape; the others hide inside it. `color` and
    `shape` are indices [n, num_objects], and `rgb` [n, num_colors, 3] holds the colours' shades.
    """
    sizes = np.array(
        [[s.size if s.geom == kind else HIDDEN_SIZE for kind in GEOM_KINDS] for s in shapes]
    )
    rows = np.arange(len(ids))
    for i, columns in enumerate(geoms):
        fields["geom_size"][np.ix_(ids, columns)] = sizes[shape[:, i]]
        shade = np.concatenate([rgb[rows, color[:, i]], np.ones((len(ids), 1))], axis=1)
        fields["geom_rgba"][np.ix_(ids, columns)] = shade[:, None]


def write_surroundings(
    fields: dict[str, np.ndarray],
    model: mujoco.MjModel,
    ids: np.ndarray,
    geoms: np.ndarray,
    around: Surroundings,
) -> None:
    """Write the surfaces' colours, and friction, lamp and cameras where the batch expanded them."""
    if "geom_friction" in fields:
        fields["geom_friction"][np.ix_(ids, geoms.ravel(), np.array([0]))] = around.friction[
            :, None, None
        ]
    for i, name in enumerate(SURFACES):
        geom = model.geom(name).id
        fields["geom_rgba"][ids, geom, :3] = np.clip(
            model.geom_rgba[geom, :3] + around.surfaces[:, i], 0.0, 1.0
        )
    if "light_diffuse" in fields:
        fields["light_diffuse"][ids] = (
            model.light_diffuse * (around.lamp[:, None] * around.tint)[:, None]
        )
    if "light_dir" in fields:
        turn = np.concatenate([around.lamp_turn, np.zeros((len(ids), 1))], axis=1)
        fields["light_dir"][ids] = model.light_dir @ quat_to_matrix(rpy_to_quat(turn)).transpose(
            0, 2, 1
        )
    if "cam_pos" in fields:
        fields["cam_pos"][ids] = model.cam_pos + around.camera_offset
    if "cam_quat" in fields:
        turn = rpy_to_quat(around.camera_turn.reshape(-1, 3))
        fixed = np.tile(model.cam_quat, (len(ids), 1))
        fields["cam_quat"][ids] = multiply_quats(fixed, turn).reshape(len(ids), -1, 4)
