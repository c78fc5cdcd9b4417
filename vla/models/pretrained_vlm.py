"""Pretrained vision-language models of transformers, split into a vision and a language half.

The vision half (tower and connector, with outputs of the language model's width) replaces a timm
encoder and a projector. The language half is a causal LM like any other. Supported are SmolVLM and
Idefics3, PaliGemma, and Qwen2.5-VL, whose tower takes patches instead of pictures.
"""

from __future__ import annotations

from typing import Any, assert_never, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from vla.models.backbone import Backbone
from vla.models.loading import BACKBONE, load_pretrained

KINDS = ("idefics3", "smolvlm", "paligemma", "qwen2_5_vl")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of pixels in [0, 1] for Qwen2.5-VL; the others map to [-1, 1]."""


class PretrainedVision(nn.Module):
    """Images to tokens of the language model's width: uint8 [B, h, w, 3] -> float [B, tokens,
    width].

    `tower` is the inner model of transformers without its language model. Pictures of
    `stored_image_size` pixels are enlarged to `pixels`, a size that the tower supports.
    """

    projected = True

    def __init__(self, tower: nn.Module, kind: str, image_size: int, pixels: int):
        super().__init__()
        self.tower = tower
        self.kind = kind
        self.image_size = image_size
        self.pixels = pixels
        with torch.no_grad():
            tokens = self(torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8))
        self.num_patches = tokens.shape[1]
        self.width = tokens.shape[2]

    def forward(self, images: UInt8[Tensor, "B h w 3"]) -> Float[Tensor, "B p d"]:
        tower: Any = self.tower
        unit = images.permute(0, 3, 1, 2).to(tower.dtype) / 255
        if unit.shape[-1] != self.pixels:
            unit = functional.interpolate(
                unit, (self.pixels, self.pixels), mode="bilinear", align_corners=False
            )
        if self.kind == "qwen2_5_vl":
            return self._by_patches(unit)
        signed = unit * 2 - 1
        if self.kind == "paligemma":
            return tower.get_image_features(signed).pooler_output
        # Idefics3 takes several pictures a row, and gives a list of all of them.
        return torch.stack(list(tower.get_image_features(signed[:, None]).pooler_output))

    def _by_patches(self, unit: Float[Tensor, "B 3 s s"]) -> Float[Tensor, "B p d"]:
        """Tokens of Qwen2.5-VL, whose tower takes flat patches: those of one token are adjacent."""
        tower: Any = self.tower
        config = tower.config.vision_config
        mean, std = (
            torch.tensor(v, dtype=unit.dtype, device=unit.device) for v in (CLIP_MEAN, CLIP_STD)
        )
        scaled = (unit - mean[:, None, None]) / std[:, None, None]
        rows = len(unit)
        side = self.pixels // config.patch_size
        merge = config.spatial_merge_size
        cells = (side // merge, merge, config.patch_size)
        parts = scaled.view(rows, scaled.shape[1], *cells, *cells).permute(0, 2, 5, 3, 6, 1, 4, 7)
        # Qwen's patches span two frames of a film; a picture is a film of two equal frames.
        twice = parts.unsqueeze(6).expand(
            *parts.shape[:6], config.temporal_patch_size, *parts.shape[6:]
        )
        grid = torch.tensor([[1, side, side]], device=unit.device).expand(rows, -1)
        features = tower.get_image_features(
            twice.reshape(rows * side * side, -1), grid
        ).pooler_output
        return torch.stack(list(features))


def load_pretrained_vlm(
    name_or_path: str, image_size: int, dtype: torch.dtype
) -> tuple[PretrainedVision, Backbone]:
    """The two halves of a model by hub name or local folder.

    Raises:
        ValueError: the model is of an unsupported kind, or cannot be loaded.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = load_pretrained(AutoConfig, name_or_path, BACKBONE)
    if config.model_type not in KINDS:
        raise ValueError(
            f"model.backbone.repository ({name_or_path}) is a {config.model_type}, which is not "
            "supported: "
            f"choose one of {', '.join(KINDS)}"
        )
    model = load_pretrained(AutoModelForImageTextToText, name_or_path, BACKBONE, dtype=dtype)
    return split_vlm(model, image_size)


def split_vlm(model: Any, image_size: int) -> tuple[PretrainedVision, Backbone]:
    """The vision half and the language half of a loaded model; they share no weights."""
    kind = model.config.model_type
    inner = model.model
    language = causal_model(model)
    inner.set_decoder(nn.Identity())
    vision = model.config.vision_config
    if kind == "qwen2_5_vl":
        side = vision.patch_size * vision.spatial_merge_size
        pixels = -(-image_size // side) * side
    else:
        pixels = vision.image_size
    return PretrainedVision(inner, kind, image_size, pixels), Backbone(language)


def causal_model(model: Any) -> nn.Module:
    """The language model with its head, as the causal LM class of transformers."""
    from transformers import GemmaForCausalLM, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config = model.config.text_config
    match cast(Any, model.config.model_type):
        case "idefics3" | "smolvlm":
            kind = LlamaForCausalLM
            text_config = config
        case "paligemma":
            kind = GemmaForCausalLM
            text_config = config
        case "qwen2_5_vl":
            kind = Qwen2ForCausalLM
            text_config = Qwen2Config(vocab_size=config.vocab_size, hidden_size=config.hidden_size)
        case other:
            assert_never(other)
    # The shell's own weights are replaced below, so it takes no memory.
    with torch.device("meta"):
        shell = kind(text_config)
    shell.model = model.model.get_decoder()
    shell.lm_head = model.lm_head
    return shell
