"""Episodes as mp4 files: the cameras side by side, above the instruction and the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL import ImageFont

Frames = Mapping[str, UInt8[np.ndarray, "T h w 3"]]

CAMERA_PIXELS = 288
STRIP_PIXELS = 44
GAP_PIXELS = 4
MARGIN = 12
DARK = (24, 27, 31)
LIGHT = (236, 239, 243)
GREY = (120, 128, 138)
GREEN = (64, 176, 108)
RED = (222, 88, 82)
HOLD_SECONDS = 0.75
"""Duration of the last frame, so that a viewer can see the end."""


def write_video(
    path: Path, frames: Frames, instruction: str, success: bool | None, fps: float = 20.0
) -> None:
    """Write one episode: uint8 RGB frames by camera, T of each, at `fps` frames a second.

    `success` None shows no outcome. The file appears when it is complete.

    Raises:
        ValueError: a camera has no frame, or cameras have different numbers of frames.
    """
    lengths = {name: len(images) for name, images in frames.items()}
    if not lengths or 0 in lengths.values() or len(set(lengths.values())) != 1:
        raise ValueError(
            "a video needs the same number of frames, at least one, from each camera; got "
            f"{lengths}"
        )
    num_frames = next(iter(lengths.values()))
    pictures: list[np.ndarray] = []
    strip = np.zeros((0, 0, 3), np.uint8)
    for t in range(num_frames):
        view = side_by_side([images[t] for images in frames.values()])
        strip = (
            caption_strip(view.shape[1], instruction, success, tuple(frames)) if t == 0 else strip
        )
        pictures.append(np.concatenate([view, with_progress(strip, (t + 1) / num_frames)]))
    pictures += [pictures[-1]] * round(HOLD_SECONDS * fps)
    encode(path, pictures, fps)


def side_by_side(images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[np.ndarray, "H W 3"]:
    """Images in a row with dark gaps, each enlarged by an integer to about `CAMERA_PIXELS` rows."""
    large = [enlarge(image) for image in images]
    height = max(image.shape[0] for image in large)
    gap = np.full((height, GAP_PIXELS, 3), DARK, np.uint8)
    row: list[np.ndarray] = []
    for image in large:
        rest = np.full((height - image.shape[0], image.shape[1], 3), DARK, np.uint8)
        row += [gap] * bool(row) + [np.concatenate([image, rest])]
    return pad_to_even(np.concatenate(row, axis=1))


def enlarge(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """The image with every pixel as a square: the policy's input without smoothing."""
    factor = max(1, round(CAMERA_PIXELS / image.shape[0]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def pad_to_even(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """The image with an even number of rows and columns, as the video format requires."""
    return np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")


def caption_strip(
    width: int, instruction: str, success: bool | None, cameras: Sequence[str]
) -> UInt8[np.ndarray, "H W 3"]:
    """The strip under the images: instruction (shortened), outcome, and names of the cameras."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, STRIP_PIXELS), DARK)
    draw = ImageDraw.Draw(image)
    outcome, color = {True: ("success", GREEN), False: ("failure", RED), None: ("", GREY)}[success]
    large = ImageFont.load_default(15)
    small = ImageFont.load_default(10)
    outcome_width = round(large.getlength(outcome))
    room = width - 3 * MARGIN - outcome_width
    draw.text((MARGIN, 4), shorten(instruction, large, room), fill=LIGHT, font=large)
    draw.text((width - MARGIN - outcome_width, 4), outcome, fill=color, font=large)
    for i, camera in enumerate(cameras):
        draw.text((MARGIN + i * width // len(cameras), 25), camera, fill=GREY, font=small)
    return np.asarray(image)


def shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    """The text, with an ellipsis for its end where it is wider than `room` pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text + "..."


def with_progress(strip: UInt8[np.ndarray, "H W 3"], share: float) -> UInt8[np.ndarray, "H W 3"]:
    """The strip with a line at the bottom whose length is the elapsed share of the episode."""
    drawn = strip.copy()
    drawn[-3:, : round(share * strip.shape[1])] = LIGHT
    return drawn


def encode(path: Path, pictures: Sequence[UInt8[np.ndarray, "h w 3"]], fps: float) -> None:
    """Write H.264 in mp4, which every browser plays."""
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
