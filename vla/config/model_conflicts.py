"""What is wrong between the sizes of a model, of a policy on it, and of what it is shown."""

from __future__ import annotations

from vla.config.robot import RobotConfig, SmallBackbone
from vla.config.text import LanguageModel, TinyLanguageModel
from vla.config.training import Lora
from vla.ranges import nearest_divisor

SMOLLM2_WIDTH = 576
NUM_RESERVED = 384
"""Ids of a small backbone's vocabulary that stand for places and actions."""
SPECIALS_AND_BYTES = 259
"""The smallest vocabulary that writes every text: three special tokens and the bytes."""


def model_conflicts(config: RobotConfig) -> list[str]:
    found = []
    vision, backbone = config.model.vision, config.model.backbone
    if (vision.name == "own") != (backbone.name == "vlm"):
        found.append(
            f"model.vision.name ({vision.name}) and model.backbone.name ({backbone.name}) belong together where one of "
            "them is own or vlm: choose model=smolvlm, paligemma or qwen2_5_vl, or model=hub"
        )
    if vision.name == "small":
        found += head_conflicts("model.vision", vision.width, vision.num_heads, 1)
    if isinstance(backbone, SmallBackbone):
        found += head_conflicts("model.backbone", backbone.width, backbone.num_heads, 2)
        found += vocabulary_conflicts("model.backbone", backbone.vocabulary_size, NUM_RESERVED)
    known = {"small": getattr(backbone, "width", None), "smollm2": SMOLLM2_WIDTH}
    found += lora_conflicts("model.lora", config.model.lora, known.get(backbone.name))
    if vision.name == "small" and config.sim.image_size % 2 ** len(vision.stem_channels):
        patch = 2 ** len(vision.stem_channels)
        found.append(
            f"sim.image_size ({config.sim.image_size}) must be a multiple of the patch size ({patch})"
        )
    bins = getattr(config.policy, "num_bins", 0)
    if backbone.name == "small" and bins >= backbone.vocabulary_size:
        found.append(
            f"policy.num_bins ({bins}) action ids do not fit beside words in "
            f"model.backbone.vocabulary_size ({backbone.vocabulary_size}): use fewer bins or a larger vocabulary"
        )
    if config.model.lora is not None and config.model.freeze_backbone:
        found.append(
            "model.freeze_backbone (true) leaves nothing for model.lora to train: set one of them to false or null"
        )
    return found


def head_conflicts(section: str, width: int, num_heads: int, multiple: int) -> list[str]:
    """Heads of one size, which is a multiple of 2 where positions are rotations of pairs."""
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
    smallest = SPECIALS_AND_BYTES + reserved
    if size >= smallest:
        return []
    return [
        f"{section}.vocabulary_size ({size}) cannot hold bytes and special tokens: {smallest} is the least"
    ]


def lora_conflicts(section: str, lora: Lora | None, width: int | None) -> list[str]:
    """An adapter of more than full rank."""
    if lora is None or width is None or lora.rank <= width:
        return []
    return [f"{section}.rank ({lora.rank}) is more than the model's width ({width}): 16 is usual"]


def language_model_conflicts(model: LanguageModel) -> list[str]:
    """What a tiny model cannot be, and an adapter of more than full rank."""
    if not isinstance(model, TinyLanguageModel):
        return lora_conflicts(
            "language_model.lora", model.lora, SMOLLM2_WIDTH if model.name == "smollm2" else None
        )
    found = head_conflicts("language_model", model.width, model.num_heads, 2)
    if model.num_heads % 2:
        found.append(
            f"language_model.num_heads ({model.num_heads}) must be even, for two heads share their keys: "
            f"{model.num_heads + 1} is"
        )
    found += vocabulary_conflicts("language_model", model.vocabulary_size, 0)
    return found + lora_conflicts("language_model.lora", model.lora, model.width)
