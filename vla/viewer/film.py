"""Films of a policy before and after RL: the same starts side by side, as WebP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from vla.files.writing import atomic_file
from vla.statistics import SuccessRate

if TYPE_CHECKING:
    from PIL import Image as Images

MAX_BYTES = 2_000_000
"""Largest size of a film, small enough for the front page of a repository."""
QUALITIES = (80, 70, 60, 50, 40, 30, 20, 10)
CAPTION_PIXELS = 46
GAP_PIXELS = 4
HALF_GAP_PIXELS = 16
HOLD_SECONDS = 1.5
"""Duration of the last frame, so that the outcomes can be read."""
DARK = (24, 27, 31)
LIGHT = (236, 239, 243)
GREY = (150, 158, 168)
GREEN = (64, 176, 108)
RED = (222, 88, 82)


@dataclass(frozen=True)
class FilmedEpisode:
    """Images of one episode [T, h, w, 3] and its success."""

    frames: UInt8[np.ndarray, "T h w 3"]
    success: bool


@dataclass(frozen=True)
class Half:
    """One side of a film: title, success rate of the whole evaluation, and a few episodes."""

    title: str
    rate: SuccessRate
    episodes: Sequence[FilmedEpisode]

    @property
    def caption(self) -> str:
        """The success rate with its number of starts, interval and decoding."""
        low, high = (f"{100 * bound:.1f}" for bound in self.rate.interval)
        return (
            f"{100 * self.rate.rate:.1f} % of {self.rate.num_starts} held-out starts, "
            f"95 % interval {low} to {high}, {self.rate.decoding}"
        )


def write_film(path: Path, halves: Sequence[Half], control_hz: float, stride: int = 2) -> int:
    """Write the film at `control_hz` with every `stride`-th frame; its size in bytes.

    The image quality falls until the film is below `MAX_BYTES`. Raises ValueError where the lowest
    quality does not suffice.
    """
    pictures = draw_film(halves, stride)
    milliseconds = [round(1000 * stride / control_hz)] * len(pictures)
    milliseconds[-1] += round(1000 * HOLD_SECONDS)
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in QUALITIES:
        with atomic_file(path) as unfinished:
            pictures[0].save(
                unfinished,
                format="WEBP",
                save_all=True,
                append_images=pictures[1:],
                duration=milliseconds,
                loop=0,
                quality=quality,
                method=4,
            )
        if path.stat().st_size < MAX_BYTES:
            return path.stat().st_size
    raise ValueError(
        f"{path} has {path.stat().st_size} bytes at the lowest quality, more than {MAX_BYTES}: "
        "film fewer starts, or smaller images"
    )


def draw_film(halves: Sequence[Half], stride: int) -> list[Images.Image]:
    """Every `stride`-th frame of the film; an ended episode shows its last image."""
    from PIL import Image

    length = max(len(episode.frames) for half in halves for episode in half.episodes)
    times = list(range(0, length, stride))
    if times[-1] != length - 1:
        times.append(length - 1)
    panels = [[draw_half(half, t) for half in halves] for t in times]
    gap = np.full((panels[0][0].shape[0], HALF_GAP_PIXELS, 3), DARK, np.uint8)
    return [Image.fromarray(np.concatenate([left, gap, right], axis=1)) for left, right in panels]


def draw_half(half: Half, t: int) -> UInt8[np.ndarray, "H W 3"]:
    """The captions of a side and its episodes at control step `t`, two in a row."""
    tiles = [draw_tile(episode, t) for episode in half.episodes]
    if len(tiles) % 2:
        tiles.append(np.full_like(tiles[0], DARK[0]))
    rows = [np.concatenate(tiles[i : i + 2], axis=1) for i in range(0, len(tiles), 2)]
    grid = np.concatenate(rows)
    return np.concatenate([draw_caption(grid.shape[1], half.title, half.caption), grid])


def draw_tile(episode: FilmedEpisode, t: int) -> UInt8[np.ndarray, "H W 3"]:
    """An episode's image in a frame, coloured by the outcome once the episode has ended."""
    ended = t >= len(episode.frames) - 1
    picture = episode.frames[min(t, len(episode.frames) - 1)]
    colour = (GREEN if episode.success else RED) if ended else DARK
    height, width = picture.shape[:2]
    tile = np.empty((height + 2 * GAP_PIXELS, width + 2 * GAP_PIXELS, 3), np.uint8)
    tile[:] = colour
    tile[GAP_PIXELS:-GAP_PIXELS, GAP_PIXELS:-GAP_PIXELS] = picture
    return tile


def draw_caption(width: int, title: str, caption: str) -> UInt8[np.ndarray, "H W 3"]:
    """A title with a line below it."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, CAPTION_PIXELS), DARK)
    draw = ImageDraw.Draw(image)
    draw.text((GAP_PIXELS, 4), title, fill=LIGHT, font=ImageFont.load_default(16))
    size = 12
    while size > 7 and ImageFont.load_default(size).getlength(caption) > width - 2 * GAP_PIXELS:
        size -= 1
    draw.text((GAP_PIXELS, 27), caption, fill=GREY, font=ImageFont.load_default(size))
    return np.asarray(image)
