"""A policy as one model: adapters merged into the weights of their base, and the architecture
beside the weights, so that an export loads without the base.

    architecture/  config.json of the pretrained model, preprocessor_config.json of its pictures
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vla.config.robot import HubBackbone, RobotConfig, SmallBackbone, SmolLM2Backbone, VlmBackbone
from vla.files.writing import write_json
from vla.models.loading import ARCHITECTURE, BACKBONE, load_pretrained
from vla.models.lora import merge_lora
from vla.pipelines.robot.policy import MODEL, with_base
from vla.policies.vla_policy import VlaPolicy

BACKBONE_WEIGHTS = f"{MODEL}backbone."
VISION_WEIGHTS = f"{MODEL}vision."


def merge_policy(policy: VlaPolicy) -> bool:
    """Merge the adapter of a policy, and give its state dict all weights.

    Returns:
        False where the policy was one model already.
    """
    model = policy.model
    has_adapter = any("lora_" in name for name, _ in model.named_parameters())
    was_partial = bool(model.left_out)
    merge_lora(model.backbone.model)
    model.left_out = frozenset()
    model.first_rows = {}
    return has_adapter or was_partial


def is_whole(weights: Mapping[str, Any]) -> bool:
    """True for the weights of a policy that needs no base; its adapter may be apart."""
    layers = [name for name in weights if name.startswith(BACKBONE_WEIGHTS)]
    return any("lora_" not in name and name.endswith(".weight") for name in layers)


def whole_settings(settings: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """The section `model` of an export that needs no base: no name of it, and no adapter."""
    model = dict(settings)
    backbone = dict(model["backbone"])
    if backbone["name"] == "smollm2":
        backbone = {"name": "hub"}
    if backbone["name"] != "small":
        model["backbone"] = {**backbone, "repository": ARCHITECTURE}
    if not any("lora_" in name for name in weights):
        model["lora"] = None
    vision = model["vision"]
    if vision.get("pretrained") and any(name.startswith(VISION_WEIGHTS) for name in weights):
        model["vision"] = {**vision, "pretrained": False}
    return model


def write_architecture(
    folder: Path, config: RobotConfig, spec: Mapping[str, Any], source: Path, vision: nn.Module
) -> None:
    """Write the architecture of the pretrained model of the policy in `source`; a small model has
    none.

    Raises:
        ValueError: the base of the policy is not here.
    """
    from transformers import AutoConfig

    match with_base(config, spec, source).model.backbone:
        case SmallBackbone():
            return
        case SmolLM2Backbone():
            from vla.text.smollm2_download import fetch_smollm2

            repository = str(fetch_smollm2())
        case VlmBackbone() | HubBackbone() as backbone:
            repository = backbone.repository
    load_pretrained(AutoConfig, repository, BACKBONE).save_pretrained(folder / ARCHITECTURE)
    if config.model.vision.name == "own":
        values = {
            "image_mean": vision.pixel_mean.flatten().tolist(),  # type: ignore[operator,union-attr]
            "image_std": vision.pixel_std.flatten().tolist(),  # type: ignore[operator,union-attr]
            "do_normalize": True,
        }
        write_json(folder / ARCHITECTURE / "preprocessor_config.json", values)
