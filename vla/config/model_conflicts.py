"""Conflicts between the sizes of a model, of its policy and of its inputs."""

from __future__ import annotations

from math import isqrt

from vla.config.robot import RobotConfig, SmallBackbone
from vla.config.text import LanguageModel, TinyLanguageModel
from vla.config.training import Lora
from vla.ranges import nearest_divisor

SMOLLM2_WIDTH = 576
NUM_RESERVED = 384
"""Token ids of a small backbone that are reserved for locations and actions."""
SPECIALS_AND_BYTES = 259
"""The smallest vocabulary that encodes every text: three special tokens and 256 bytes."""


def model_conflicts(config: RobotConfig) -> list[str]:
    """Conflicts between the settings of a model, one message each."""
    problems = []
    vision = config.model.vision
    backbone = config.model.backbone
    if (vision.name == "own") != (backbone.name == "vlm"):
        problems.append(
            f"model.vision.name ({vision.name}) and model.backbone.name ({backbone.name}) belong "
            "together where one of "
            "them is own or vlm: choose model=vlm (or a family, as model=qwen3_vl), or model=hub"
        )
    tokens = getattr(vision, "num_tokens", None)
    if tokens is not None and isqrt(tokens) ** 2 != tokens:
        problems.append(
            f"model.vision.num_tokens ({tokens}) must be a square number, because the grid of a "
            f"picture's tokens is averaged to a smaller square: {isqrt(tokens) ** 2} is"
        )
    if vision.name == "small":
        problems += head_conflicts("model.vision", vision.width, vision.num_heads, 1)
    if isinstance(backbone, SmallBackbone):
        problems += head_conflicts("model.backbone", backbone.width, backbone.num_heads, 2)
        problems += vocabulary_conflicts("model.backbone", backbone.vocabulary_size, NUM_RESERVED)
    known = {"small": getattr(backbone, "width", None), "smollm2": SMOLLM2_WIDTH}
    problems += lora_conflicts("model.lora", config.model.lora, known.get(backbone.name))
    if vision.name == "small" and config.sim.image_size % 2 ** len(vision.stem_channels):
        patch = 2 ** len(vision.stem_channels)
        problems.append(
            f"sim.image_size ({config.sim.image_size}) must be a multiple of the patch size "
            f"({patch})"
        )
    bins = getattr(config.policy, "num_bins", 0)
    if backbone.name == "small" and bins >= backbone.vocabulary_size:
        problems.append(
            f"policy.num_bins ({bins}) action ids do not fit beside words in "
            f"model.backbone.vocabulary_size ({backbone.vocabulary_size}): use fewer bins or a "
            "larger vocabulary"
        )
    if config.model.lora is not None and config.model.freeze_backbone:
        problems.append(
            "model.freeze_backbone (true) leaves nothing for model.lora to train: set one of them "
            "to false or null"
        )
    return problems


def head_conflicts(section: str, width: int, num_heads: int, multiple: int) -> list[str]:
    """A number of heads that does not divide the width.

    The size of a head must be even (`multiple` 2) where rotary positions rotate pairs.
    """
    if width % (multiple * num_heads) == 0:
        return []
    if width % multiple:
        return [f"{section}.width ({width}) must be a multiple of {multiple}: {width + 1} is"]
    even = " into even parts" if multiple > 1 else ""
    return [
        f"{section}.num_heads ({num_heads}) must divide {section}.width ({width}){even}: "
        f"{nearest_divisor(num_heads, width // multiple)} does"
    ]


def vocabulary_conflicts(section: str, size: int, reserved: int) -> list[str]:
    """A vocabulary too small for bytes, special tokens and reserved ids."""
    smallest = SPECIALS_AND_BYTES + reserved
    if size >= smallest:
        return []
    return [
        f"{section}.vocabulary_size ({size}) cannot hold bytes and special tokens: {smallest} is "
        "the least"
    ]


def lora_conflicts(section: str, lora: Lora | None, width: int | None) -> list[str]:
    """An adapter whose rank exceeds the width of the model."""
    if lora is None or width is None or lora.rank <= width:
        return []
    return [f"{section}.rank ({lora.rank}) is more than the model's width ({width}): 16 is usual"]


def language_model_conflicts(model: LanguageModel) -> list[str]:
    """Sizes that a tiny model cannot have, and an adapter whose rank exceeds the width."""
    if not isinstance(model, TinyLanguageModel):
        return lora_conflicts(
            "language_model.lora", model.lora, SMOLLM2_WIDTH if model.name == "smollm2" else None
        )
    problems = head_conflicts("language_model", model.width, model.num_heads, 2)
    if model.num_heads % 2:
        problems.append(
            f"language_model.num_heads ({model.num_heads}) must be even, because two heads share "
            "their keys: "
            f"{model.num_heads + 1} is"
        )
    problems += vocabulary_conflicts("language_model", model.vocabulary_size, 0)
    return problems + lora_conflicts("language_model.lora", model.lora, model.width)
