"""Episodes as mp4: the cameras side by side, under them what was asked and whether it was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL import ImageFont

Frames = Mapping[str, UInt8[np.ndarray, "T h w 3"]]

CAMERA_PIXELS, STRIP_PIXELS, GAP_PIXELS, MARGIN = 288, 44, 4, 12
DARK, LIGHT, GREY = (24, 27, 31), (236, 239, 243), (120, 128, 138)
GREEN, RED = (64, 176, 108), (222, 88, 82)
HOLD_SECONDS = 0.75
"""The last frame stays this long, so that the end can be seen."""


def write_video(
    path: Path, frames: Frames, instruction: str, success: bool | None, fps: float = 20.0
) -> None:
    """Write one episode: uint8 RGB frames by camera, all of one length T, at `fps` frames a second.

    `success` None shows no verdict. The file appears when it is complete. Raises ValueError when
    there is no frame.
    """
    lengths = {name: len(images) for name, images in frames.items()}
    if not lengths or 0 in lengths.values() or len(set(lengths.values())) != 1:
        raise ValueError(
            f"a video needs the same number of frames, at least one, from each camera; got {lengths}"
        )
    num_frames = next(iter(lengths.values()))
    pictures, strip = [], np.zeros((0, 0, 3), np.uint8)
    for t in range(num_frames):
        view = side_by_side([images[t] for images in frames.values()])
        strip = (
            caption_strip(view.shape[1], instruction, success, tuple(frames)) if t == 0 else strip
        )
        pictures.append(np.concatenate([view, with_progress(strip, (t + 1) / num_frames)]))
    pictures += [pictures[-1]] * round(HOLD_SECONDS * fps)
    encode(path, pictures, fps)


def side_by_side(images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[np.ndarray, "H W 3"]:
    """Pictures in a row, each enlarged by a whole factor to about `CAMERA_PIXELS` high, with a dark
    gap between."""
    large = [enlarge(image) for image in images]
    height = max(image.shape[0] for image in large)
    gap = np.full((height, GAP_PIXELS, 3), DARK, np.uint8)
    row: list[np.ndarray] = []
    for image in large:
        rest = np.full((height - image.shape[0], image.shape[1], 3), DARK, np.uint8)
        row += [gap] * bool(row) + [np.concatenate([image, rest])]
    return pad_to_even(np.concatenate(row, axis=1))


def enlarge(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Every pixel a square: what the policy saw, not a smoothed version of it."""
    factor = max(1, round(CAMERA_PIXELS / image.shape[0]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def pad_to_even(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """An even number of rows and columns, as the video format asks."""
    return np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")


def caption_strip(
    width: int, instruction: str, success: bool | None, cameras: Sequence[str]
) -> UInt8[np.ndarray, "H W 3"]:
    """The instruction on the left (shortened until it fits), the verdict on the right, cameras'
    names below."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, STRIP_PIXELS), DARK)
    draw = ImageDraw.Draw(image)
    verdict = {True: ("success", GREEN), False: ("failure", RED), None: ("", GREY)}[success]
    large, small = ImageFont.load_default(15), ImageFont.load_default(10)
    verdict_width = round(large.getlength(verdict[0]))
    room = width - 3 * MARGIN - verdict_width
    draw.text((MARGIN, 4), shorten(instruction, large, room), fill=LIGHT, font=large)
    draw.text((width - MARGIN - verdict_width, 4), verdict[0], fill=verdict[1], font=large)
    for i, camera in enumerate(cameras):
        draw.text((MARGIN + i * width // len(cameras), 25), camera, fill=GREY, font=small)
    return np.asarray(image)


def shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    """The text, its end replaced by an ellipsis when it is wider than `room` pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text + "..."


def with_progress(strip: UInt8[np.ndarray, "H W 3"], share: float) -> UInt8[np.ndarray, "H W 3"]:
    """The strip with a thin line along its foot that shows how much of the episode is over."""
    drawn = strip.copy()
    drawn[-3:, : round(share * strip.shape[1])] = LIGHT
    return drawn


def encode(path: Path, pictures: Sequence[UInt8[np.ndarray, "h w 3"]], fps: float) -> None:
    """H.264 in an mp4 that every browser plays."""
    from fractions import Fraction

    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{path.name}")
    with av.open(
        str(unfinished), "w", format="mp4", options={"movflags": "faststart"}
    ) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "fast", "threads": "1"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    unfinished.replace(path)
