"""Factories of models and policies from the settings of a robot run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import Tensor

from vla.command_names import command_name
from vla.config.policy import PolicySection
from vla.config.robot import (
    HubBackbone,
    HubVision,
    Model,
    OwnVision,
    RobotConfig,
    SmallBackbone,
    SmallVision,
    SmolLM2Backbone,
    VlmBackbone,
)
from vla.config.training import Lora, Rl
from vla.models.action_queries import ActionQueries
from vla.models.backbone import (
    Backbone,
    check_causal_lm,
    enable_gradient_checkpointing,
    hub_backbone,
    small_llama,
)
from vla.models.base_model import leave_out
from vla.models.checkpoint import EMBEDDED, SmallArchitecture, load_vlm, read_architecture
from vla.models.loading import BACKBONE, load_pretrained
from vla.models.lora import add_lora, merge_lora
from vla.models.pretrained_vlm import PretrainedVision, check_vlm, load_pretrained_vlm
from vla.models.vision import VisionEncoder, check_tower, hub_vit, small_vit
from vla.models.vlm import VisionLanguageModel
from vla.models.vocabulary import NUM_ACTION_IDS, NUM_LOCATIONS, location_ids
from vla.plugins import find_target, load_target
from vla.policies import policy_table
from vla.policies.adapter import NoiseAdapter, ResidualAdapter, make_adapter
from vla.policies.head import ActionCode, Head, PolicySettings
from vla.policies.vla_policy import VlaPolicy


@dataclass(frozen=True)
class MergedAdapter:
    """A trained adapter that is part of a model's frozen weights; names are the backbone's."""

    lora: Lora
    weights: Mapping[str, Tensor]


def small_architecture(
    config: RobotConfig, proprio_size: int, num_plan_numbers: int
) -> SmallArchitecture | None:
    """Architecture of a small model; None where a part of the model comes from the hub."""
    vision = config.model.vision
    backbone = config.model.backbone
    if not isinstance(vision, SmallVision) or not isinstance(backbone, SmallBackbone):
        return None
    return SmallArchitecture(
        cameras=config.sim.cameras,
        image_size=config.sim.image_size,
        proprio_size=proprio_size,
        vision_width=vision.width,
        vision_depth=vision.depth,
        vision_heads=vision.num_heads,
        stem_channels=vision.stem_channels,
        vocabulary_size=backbone.vocabulary_size,
        width=backbone.width,
        depth=backbone.depth,
        num_heads=backbone.num_heads,
        intermediate=backbone.intermediate,
        num_queries=config.policy.chunk,
        num_plan_numbers=num_plan_numbers,
    )


def checkpoint_folder(checkpoint: str) -> Path:
    """Folder of a checkpoint; "embedded" is the one that ships with the package."""
    return EMBEDDED if checkpoint == "embedded" else Path(checkpoint)


def build_vlm(
    config: RobotConfig,
    proprio_size: int,
    num_plan_numbers: int,
    texts: Sequence[str],
    merged: Sequence[MergedAdapter] = (),
) -> tuple[VisionLanguageModel, Any]:
    """Build the vision-language model and its tokenizer.

    `texts` train a tokenizer where the model comes without one. `merged` are added to the weights
    of the pretrained backbone.

    Raises:
        ValueError: a checkpoint is missing, damaged, or made for other cameras, image sizes or
            layer sizes.
    """
    architecture = small_architecture(config, proprio_size, num_plan_numbers)
    if config.model.checkpoint is not None:
        model, loaded_architecture, tokenizer = load_vlm(checkpoint_folder(config.model.checkpoint))
        check_architecture(config.model.checkpoint, loaded_architecture, architecture)
    else:
        vision, backbone, tokenizer = _build_vision_and_backbone(config, texts)
        plan = ActionQueries(config.policy.chunk, num_plan_numbers, backbone.width)
        model = VisionLanguageModel(vision, backbone, config.sim.cameras, proprio_size, plan)
        backbone.order_embeddings(location_ids(backbone.vocabulary_size).start, NUM_LOCATIONS)
    for adapter in merged:
        add_lora(model.backbone.model, adapter.lora.rank, adapter.lora.alpha)
        model.backbone.load_state_dict(adapter.weights, strict=False)
        merge_lora(model.backbone.model)
    freeze_parts(config.model, model)
    if config.model.gradient_checkpointing:
        enable_gradient_checkpointing(model.backbone)
    return model, tokenizer


def model_notes(config: RobotConfig, model: VisionLanguageModel) -> list[str]:
    """What a run tells about its model: no grounding, pictures that are enlarged."""
    notes = []
    if config.model.checkpoint is None and config.grounding.num_steps == 0:
        notes.append(
            "grounding is left out: the model is pretrained and keeps its answers "
            "(grounding.num_steps=4000 would train it on scenes first)"
        )
    vision = model.vision
    if vision.pixels > vision.image_size:
        notes.append(
            f"pictures of {vision.image_size} x {vision.image_size} pixels are enlarged to "
            f"{vision.pixels} x {vision.pixels} for the vision tower, {vision.num_patches} tokens "
            f"each: sim.image_size={vision.pixels} renders them so"
        )
    return notes


def check_model(config: RobotConfig) -> None:
    """Check names and sizes of the model before data are read or collected for it.

    Raises:
        ValueError: the checkpoint or the vision tower does not fit the settings.
    """
    if config.policy.path is not None:
        return  # the weights of the policy replace every other
    if config.model.checkpoint is not None:
        actual = read_architecture(checkpoint_folder(config.model.checkpoint))
        expected = small_architecture(config, actual.proprio_size, actual.num_plan_numbers)
        check_architecture(config.model.checkpoint, actual, expected)
        return
    model = config.model
    if isinstance(model.vision, HubVision):
        pixels = model.vision.image_size or config.sim.image_size
        check_tower(model.vision.repository, pixels, model.vision.pretrained)
    match model.backbone:
        case VlmBackbone() as backbone:
            check_vlm(backbone.repository)
        case HubBackbone() as backbone:
            check_causal_lm(backbone.repository)
        case _:
            pass


def check_architecture(
    checkpoint: str, actual: SmallArchitecture, expected: SmallArchitecture | None
) -> None:
    """Compare a checkpoint's architecture with that of the settings (None: a model from the hub).

    Raises:
        ValueError: they differ.
    """
    if expected is None:
        raise ValueError(
            f"model.checkpoint={checkpoint} holds a small model, but model.vision or "
            "model.backbone is not small: set model.checkpoint=null, or choose model=tiny"
        )
    # The number of queries may differ: queries are interpolated to the policy's chunk.
    for name in vars(expected).keys() - {"num_queries"}:
        if getattr(actual, name) != getattr(expected, name):
            raise ValueError(
                f"model.checkpoint={checkpoint} was made with {name}={getattr(actual, name)}, the "
                f"settings say {getattr(expected, name)}: use the checkpoint's, or pretrain "
                "another "
                f"with {command_name('vla-pretrain')}, or begin with none (model.checkpoint=null)"
            )


def _build_vision_and_backbone(
    config: RobotConfig, texts: Sequence[str]
) -> tuple[VisionEncoder | PretrainedVision, Backbone, Any]:
    """The vision encoder, the backbone and the tokenizer; a pretrained VLM provides all three."""
    model = config.model
    if isinstance(model.backbone, VlmBackbone):
        from transformers import AutoTokenizer

        vision, language_model = load_pretrained_vlm(
            model.backbone.repository,
            config.sim.image_size,
            torch.float32,
            pixels=getattr(model.vision, "image_size", None),
            num_tokens=getattr(model.vision, "num_tokens", None),
            is_native=model.backbone.native_layout,
        )
        tokenizer = load_pretrained(AutoTokenizer, model.backbone.repository, BACKBONE)
        return vision, language_model, tokenizer
    backbone, tokenizer = _build_backbone(model, texts)
    return _build_vision(model, config.sim.image_size), backbone, tokenizer


def _build_vision(model: Model, image_size: int) -> VisionEncoder:
    match model.vision:
        case SmallVision() as small:
            return small_vit(
                image_size, small.width, small.depth, small.num_heads, small.stem_channels
            )
        case HubVision() as hub:
            return hub_vit(
                hub.repository, image_size, hub.pretrained, hub.image_size, hub.num_tokens
            )
        case OwnVision():
            raise ValueError("model.vision.name (own) needs model.backbone.name=vlm")
        case other:
            assert_never(other)


def _build_backbone(model: Model, texts: Sequence[str]) -> tuple[Backbone, Any]:
    match model.backbone:
        case SmallBackbone() as small:
            from vla.data.tokenizer import train_tokenizer

            tokenizer = train_tokenizer(
                texts, small.vocabulary_size, reserve_last=NUM_LOCATIONS + NUM_ACTION_IDS
            )
            llama = small_llama(
                small.vocabulary_size, small.width, small.depth, small.num_heads, small.intermediate
            )
            return llama, tokenizer
        case SmolLM2Backbone():
            from vla.text.smollm2_download import fetch_smollm2

            return _pretrained_backbone(str(fetch_smollm2()), model)
        case HubBackbone() as hub:
            return _pretrained_backbone(hub.repository, model)
        case VlmBackbone():
            raise AssertionError("_build_vision_and_backbone builds both parts")
        case other:
            assert_never(other)


def _pretrained_backbone(name: str, model: Model) -> tuple[Backbone, Any]:
    """A pretrained backbone in float32, the precision of robot policies."""
    from transformers import AutoTokenizer

    tokenizer = load_pretrained(AutoTokenizer, name, BACKBONE)
    return hub_backbone(name, torch.float32, model.gradient_checkpointing), tokenizer


def base_repository(settings: Model) -> str | None:
    """Hub name or folder of the pretrained backbone; None where it has a fixed place, or is new."""
    backbone = settings.backbone
    return backbone.repository if isinstance(backbone, VlmBackbone | HubBackbone) else None


def leave_out_base(settings: Model, model: VisionLanguageModel, own: Iterable[str] = ()) -> None:
    """Leave the frozen weights of pretrained parts out of the state dict of a model.

    `own` are names of weights that differ from those of the pretrained model, which are kept.
    """
    parts = [] if settings.backbone.name == "small" else ["backbone."]
    if settings.vision.name == "own" or getattr(settings.vision, "pretrained", False):
        parts.append("vision.")
    frozen = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad and name.startswith(tuple(parts)) and "lora_" not in name
    }
    language: Any = model.backbone.model
    ordered = {
        id(language.get_input_embeddings().weight),
        id(language.get_output_embeddings().weight),
    }
    first_rows = {
        name: model.backbone.first_ordered_id
        for name, parameter in model.named_parameters()
        if id(parameter) in ordered
    }
    leave_out(model, frozen - {*own} if parts else (), first_rows)


def freeze_parts(settings: Model, model: VisionLanguageModel) -> None:
    """Freeze what the settings freeze, and add their adapter."""
    if settings.freeze_vision:
        model.vision.requires_grad_(False)
    if settings.lora is not None:
        add_lora(model.backbone.model, settings.lora.rank, settings.lora.alpha)
    elif settings.freeze_backbone:
        model.backbone.requires_grad_(False)


def policy_settings(section: PolicySection) -> PolicySettings:
    """Settings of a policy kind, as the type that makes its action code and its head."""
    settings = load_target(find_target(policy_table(), "policy.name", section.name))
    return settings(**{field.name: getattr(section, field.name) for field in fields(settings)})


def make_policy_adapter(
    rl: Rl, model: VisionLanguageModel, head: Head[Any], code: ActionCode
) -> NoiseAdapter | ResidualAdapter | None:
    """The adapter that `rl.adapt` names, with new weights; None where RL moves the policy's own."""
    if rl.adapt == "noise" or rl.adapt == "residual":
        return make_adapter(rl.adapt, model, head, code, rl.residual_scale, rl.noise_bound)
    return None


def make_policy(
    config: RobotConfig, model: VisionLanguageModel, code: ActionCode
) -> VlaPolicy[Any]:
    """Make the policy that the settings name, on a model, with an action code."""
    head = policy_settings(config.policy).make_head(model, code)
    adapter = make_policy_adapter(config.rl, model, head, code)
    return VlaPolicy(model, head, config.model.detach_critic, adapter)
