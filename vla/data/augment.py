"""Image augmentation of uint8 batches: small shifts, small changes of brightness and contrast."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor


def random_shift(images: UInt8[Tensor, "B h w 3"], pixels: int) -> UInt8[Tensor, "B h w 3"]:
    """Shift every image by up to `pixels` in each direction, with border pixels repeated (Kostrikov
    et al. 2020, DrQ)."""
    if pixels == 0:
        return images
    batch, height, width, _ = images.shape
    offsets = torch.randint(-pixels, pixels + 1, (batch, 2))
    rows = (torch.arange(height) + offsets[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width) + offsets[:, 1:]).clamp(0, width - 1)
    return images[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def random_light(images: UInt8[Tensor, "B h w 3"], strength: float) -> UInt8[Tensor, "B h w 3"]:
    """Scale the contrast of every image by up to 1 ± `strength` and shift its channels by up to a
    third of that.

    The hue is nearly preserved because instructions name colours.
    """
    if strength == 0:
        return images
    batch = len(images)
    gain = 1 + (torch.rand(batch, 1, 1, 1) * 2 - 1) * strength
    shift = (torch.rand(batch, 1, 1, 3) * 2 - 1) * strength * 85 / 3
    return (
        (images.float().sub(127.5).mul(gain).add(127.5 + shift))
        .clamp(0, 255)
        .round()
        .to(torch.uint8)
    )
