"""Randomized starts: their ranges, and the sampling of scenes.

Every start draws one flat vector of uniform numbers from its own generator. The rest is arithmetic
over all starts at once. A start therefore depends on its seed alone, not on the order, the ids or
the number of environments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from sim.appearance import (
    BLOCK_SHAPE_NAMES,
    COLOR_NAMES,
    PAD_SHAPE_NAMES,
    SURFACES,
    Looks,
    Surroundings,
)
from sim.choices import CAMERAS, check_choice
from sim.scenes.objects import COLORS
from sim.workspace import CENTER

NUM_TRIES = 4
"""Placements of all objects drawn per start."""
NUM_CANDIDATES = 24
"""Candidate positions per object in a placement."""


@dataclass(frozen=True)
class Randomization:
    """The ranges that starts are drawn from (metres, radians).

    Attributes:
        object_extent: objects lie within this distance of the workspace's centre along x and y.
        block_yaw, pad_yaw: largest rotation either way.
        colors, block_shapes, pad_shapes: names that objects are drawn from.
        block_distance: least distance between the centres of blocks.
        pad_distance: least distance between the centres of pads.
        block_pad_distance: least distance between the centres of a block and a pad.
        hand_xy: the hand starts within this distance of the centre along x and y.
        hand_height: lowest and highest start of the tcp.
        hand_yaw: largest start rotation either way.
        color_jitter: largest change of each colour channel.
        camera_position_jitter: largest change of every camera's position.
        camera_angle_jitter: largest change of every camera's direction.
        light_jitter: largest relative change of the lamp's brightness.
        light_tint: largest relative change of each of the lamp's colour channels.
        light_angle_jitter: largest change of the lamp's direction about the horizontal axes.
        surface_jitter: largest change of each colour channel of table and floor.
        friction: lowest and highest sliding friction of the blocks.
    """

    object_extent: float
    block_yaw: float
    pad_yaw: float
    colors: tuple[str, ...]
    block_shapes: tuple[str, ...]
    pad_shapes: tuple[str, ...]
    block_distance: float
    pad_distance: float
    block_pad_distance: float
    hand_xy: float
    hand_height: tuple[float, float]
    hand_yaw: float
    color_jitter: float
    camera_position_jitter: float
    camera_angle_jitter: float
    light_jitter: float
    light_tint: float
    light_angle_jitter: float
    surface_jitter: float
    friction: tuple[float, float]

    @property
    def varied_fields(self) -> tuple[str, ...]:
        """The model fields that need a value per environment for these ranges."""
        varies = {
            "geom_friction": self.friction != DEFAULT_FRICTION,
            "light_diffuse": self.light_jitter > 0 or self.light_tint > 0,
            "light_dir": self.light_angle_jitter > 0,
            "cam_pos": self.camera_position_jitter > 0,
            "cam_quat": self.camera_angle_jitter > 0,
        }
        return tuple(name for name, wanted in varies.items() if wanted)


DEFAULT_FRICTION = (1.0, 1.0)
DEFAULT_RANDOMIZATION = Randomization(
    object_extent=0.11,
    block_yaw=np.pi / 4,
    pad_yaw=0.0,
    colors=COLOR_NAMES,
    block_shapes=BLOCK_SHAPE_NAMES,
    pad_shapes=PAD_SHAPE_NAMES,
    block_distance=0.09,
    pad_distance=0.09,
    block_pad_distance=0.085,
    hand_xy=0.05,
    hand_height=(0.13, 0.18),
    hand_yaw=0.3,
    color_jitter=0.0,
    camera_position_jitter=0.0,
    camera_angle_jitter=0.0,
    light_jitter=0.0,
    light_tint=0.0,
    light_angle_jitter=0.0,
    surface_jitter=0.0,
    friction=DEFAULT_FRICTION,
)


def with_overrides(base: Randomization, overrides: Mapping[str, Any]) -> Randomization:
    """`base` with the ranges of `overrides`.

    Raises a ValueError for an unknown range, colour or shape, and for an impossible range.
    """
    names = [field.name for field in fields(Randomization)]
    for name in overrides:
        check_choice("sim.randomization", name, names)
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in overrides.items()
    }
    result = replace(base, **values)
    for setting, known in (
        ("colors", COLOR_NAMES),
        ("block_shapes", BLOCK_SHAPE_NAMES),
        ("pad_shapes", PAD_SHAPE_NAMES),
    ):
        for name in getattr(result, setting):
            check_choice(f"sim.randomization.{setting}", name, known)
    _check_numbers(result)
    return result


def _check_numbers(ranges: Randomization) -> None:
    """Raise a ValueError where a size is negative or a pair does not go from low to high."""
    for field in fields(Randomization):
        value = getattr(ranges, field.name)
        if isinstance(value, float | int) and value < 0:
            raise ValueError(f"sim.randomization.{field.name} ({value}) must not be negative")
        if field.name in ("hand_height", "friction") and (
            len(value) != 2 or not 0 <= value[0] <= value[1]
        ):
            raise ValueError(
                f"sim.randomization.{field.name} ({list(value)}) must be [lowest, highest], from "
                "0 upwards"
            )


def check_variety(ranges: Randomization, num_blocks: int, num_pads: int) -> None:
    """Raise a ValueError where there are too few colours and shapes to tell the objects apart."""
    for kind, shapes, wanted in (
        ("block", ranges.block_shapes, num_blocks),
        ("pad", ranges.pad_shapes, num_pads),
    ):
        available = len(ranges.colors) * len(shapes)
        if available < wanted:
            raise ValueError(
                f"the scene needs {wanted} different {kind}s, but sim.randomization.colors and "
                f"sim.randomization.{kind}_shapes allow {available}; allow more or lower "
                "sim.num_distractors"
            )


@dataclass(frozen=True)
class Scenes:
    """n sampled starts.

    Attributes:
        looks: colours and shapes of the objects.
        block_xy, pad_xy: positions on the table [n, objects, 2], metres.
        block_yaw, pad_yaw: rotations [n, objects], radians.
        hand_pose: commanded pose [n, 6], metres and radians.
        around: colours, light, cameras and friction.
    """

    looks: Looks
    block_xy: np.ndarray
    block_yaw: np.ndarray
    pad_xy: np.ndarray
    pad_yaw: np.ndarray
    hand_pose: np.ndarray
    around: Surroundings


class UniformNumbers:
    """A matrix of uniform numbers [n, k] that is consumed piece by piece, in a fixed order."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self._next = 0
        self._end = values.shape[1]

    def take(self, *shape: int) -> np.ndarray:
        """The next numbers as [n, *shape], in [0, 1)."""
        size = int(np.prod(shape))
        piece = self._values[:, self._next : min(self._next + size, self._end)]
        assert piece.shape[1] == size, "fewer uniform numbers were drawn than the scene needs"
        self._next += size
        return piece.reshape(len(piece), *shape)

    def from_the_end(self, low: float, high: float, *shape: int) -> np.ndarray:
        """The last numbers as [n, *shape], in [low, high).

        Properties that were added later draw from the end: those before keep their numbers.
        """
        size = int(np.prod(shape))
        piece = self._values[:, self._end - size : self._end]
        self._end -= size
        assert self._next <= self._end, "fewer uniform numbers were drawn than the scene needs"
        return low + (high - low) * piece.reshape(len(piece), *shape)

    def between(self, low: float, high: float, *shape: int) -> np.ndarray:
        """The next numbers as [n, *shape], in [low, high)."""
        return low + (high - low) * self.take(*shape)


def draw_uniform(rngs: list[np.random.Generator], num_objects: int) -> UniformNumbers:
    """One vector per generator, long enough for `sample_scenes` and a task's own draws."""
    size = NUM_TRIES * NUM_CANDIDATES * num_objects * 2 + 4 * num_objects + 128 + 64
    return UniformNumbers(np.stack([rng.random(size) for rng in rngs]))


def sample_scenes(
    numbers: UniformNumbers, ranges: Randomization, num_blocks: int, num_pads: int
) -> Scenes:
    """Starts that keep all least distances; no two objects of a kind look alike."""
    block_color, block_shape = _distinct_looks(
        numbers, ranges.colors, ranges.block_shapes, BLOCK_SHAPE_NAMES, num_blocks
    )
    pad_color, pad_shape = _distinct_looks(
        numbers, ranges.colors, ranges.pad_shapes, PAD_SHAPE_NAMES, num_pads
    )
    xy = _layout(numbers, ranges, num_blocks, num_pads)
    block_yaw = numbers.between(-ranges.block_yaw, ranges.block_yaw, num_blocks)
    pad_yaw = numbers.between(-ranges.pad_yaw, ranges.pad_yaw, num_pads)
    hand = np.zeros((len(xy), 6))
    hand[:, :2] = CENTER + numbers.between(-ranges.hand_xy, ranges.hand_xy, 2)
    hand[:, 2] = numbers.between(*ranges.hand_height, 1)[:, 0]
    hand[:, 5] = numbers.between(-ranges.hand_yaw, ranges.hand_yaw, 1)[:, 0]
    looks = Looks(block_color, block_shape, pad_color, pad_shape)
    around = _surroundings(numbers, ranges)
    return Scenes(looks, xy[:, :num_blocks], block_yaw, xy[:, num_blocks:], pad_yaw, hand, around)


def _surroundings(numbers: UniformNumbers, ranges: Randomization) -> Surroundings:
    def jitter(size: float, *shape: int) -> np.ndarray:
        return numbers.between(-size, size, *shape)

    def appended(size: float, *shape: int) -> np.ndarray:
        return numbers.from_the_end(-size, size, *shape)

    shades = np.array(list(COLORS.values())) + jitter(ranges.color_jitter, len(COLORS), 3)
    return Surroundings(
        rgb=np.clip(shades, 0.0, 1.0),
        friction=numbers.between(*ranges.friction, 1)[:, 0],
        lamp=1.0 + jitter(ranges.light_jitter, 1)[:, 0],
        camera_offset=jitter(ranges.camera_position_jitter, len(CAMERAS), 3),
        camera_turn=jitter(ranges.camera_angle_jitter, len(CAMERAS), 3),
        tint=1.0 + appended(ranges.light_tint, 3),
        lamp_turn=appended(ranges.light_angle_jitter, 2),
        surfaces=appended(ranges.surface_jitter, len(SURFACES), 3),
    )


def _distinct_looks(
    numbers: UniformNumbers,
    colors: tuple[str, ...],
    shapes: tuple[str, ...],
    all_shapes: tuple[str, ...],
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`count` different pairs of colour and shape per start, as two index arrays [n, count].

    They are the first entries of a random permutation of all pairs.
    """
    order = np.argsort(numbers.take(len(colors) * len(shapes)), axis=1, kind="stable")[:, :count]
    color = np.array([COLOR_NAMES.index(name) for name in colors])[order // len(shapes)]
    shape = np.array([all_shapes.index(name) for name in shapes])[order % len(shapes)]
    return color, shape


def _layout(
    numbers: UniformNumbers, ranges: Randomization, num_blocks: int, num_pads: int
) -> np.ndarray:
    """Positions [n, num_blocks + num_pads, 2] on the table, blocks first.

    A try places one object after another, each at its first candidate that keeps the distances to
    those before. The first try that keeps all distances is taken, else the widest.
    """
    count = num_blocks + num_pads
    extent = ranges.object_extent
    candidates = numbers.between(-extent, extent, NUM_TRIES, count, NUM_CANDIDATES, 2)
    placed = candidates[:, :, :, 0].copy()
    margin = np.full(placed.shape[:2], np.inf)
    for i in range(1, count):
        delta = candidates[:, :, i, :, None] - placed[:, :, None, :i]
        room = (
            np.sqrt((delta * delta).sum(axis=-1)) - _least_distances(ranges, num_blocks, i)
        ).min(axis=-1)
        choice = np.where(
            (room >= 0).any(axis=-1), np.argmax(room >= 0, axis=-1), np.argmax(room, axis=-1)
        )
        chosen = choice[:, :, None]
        placed[:, :, i] = np.take_along_axis(candidates[:, :, i], chosen[..., None], axis=2)[
            :, :, 0
        ]
        margin = np.minimum(margin, np.take_along_axis(room, chosen, axis=2)[:, :, 0])
    best = np.where(
        (margin >= 0).any(axis=1), np.argmax(margin >= 0, axis=1), np.argmax(margin, axis=1)
    )
    return CENTER + placed[np.arange(len(placed)), best]


def _least_distances(ranges: Randomization, num_blocks: int, i: int) -> np.ndarray:
    """Least distance [i] of object i to those before it; blocks come first, then pads."""
    before_is_block = np.arange(i) < num_blocks
    if i < num_blocks:
        return np.full(i, ranges.block_distance)
    return np.where(before_is_block, ranges.block_pad_distance, ranges.pad_distance)
