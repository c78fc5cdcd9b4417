"""The smallest vision-language model that has every part, and something for it to look at."""

from __future__ import annotations

import torch

from vla.models.checkpoint import SmallArchitecture, small_vlm
from vla.models.vlm import VisionLanguageModel
from vla.types import Observation

CAMERAS = ("front", "wrist")
IMAGE_SIZE, PROPRIO_SIZE = 8, 3
VOCABULARY, NUM_WORDS = 448, 64  # then 128 places, then 256 actions


def tiny_architecture(
    vocabulary_size: int = VOCABULARY, width: int = 16, depth: int = 2
) -> SmallArchitecture:
    """Two cameras of four patches each, so a prefix of nine tokens."""
    return SmallArchitecture(
        cameras=CAMERAS,
        image_size=IMAGE_SIZE,
        proprio_size=PROPRIO_SIZE,
        vision_width=12,
        vision_depth=1,
        vision_heads=2,
        stem_channels=(6, 12),
        vocabulary_size=vocabulary_size,
        width=width,
        depth=depth,
        num_heads=2,
        intermediate=24,
        num_queries=3,
        num_plan_numbers=4,
    )


def tiny_vlm(seed: int = 0, *, scale: float = 3.0, **sizes: int) -> VisionLanguageModel:
    """With matrices `scale` times as large as usual: looking at a wrong token changes logits by
    whole units."""
    torch.manual_seed(seed)
    model = small_vlm(tiny_architecture(**sizes))
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model


def tiny_observation(
    lengths: list[int], padding: int = 0, seed: int = 0, vocabulary: int = NUM_WORDS
) -> Observation:
    """One row per length: random pictures, proprioception, and that many words, right-padded with
    id 0."""
    generator = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), max(lengths) + padding
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    tokens = torch.randint(1, vocabulary, (rows, longest), generator=generator).masked_fill(
        ~mask, 0
    )
    images = {
        camera: torch.randint(0, 256, (rows, IMAGE_SIZE, IMAGE_SIZE, 3), generator=generator).to(
            torch.uint8
        )
        for camera in CAMERAS
    }
    return Observation(images, torch.randn(rows, PROPRIO_SIZE, generator=generator), tokens, mask)
