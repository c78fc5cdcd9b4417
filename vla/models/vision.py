"""Vision encoders: a timm Vision Transformer, from a name on the hub or small enough to train on a laptop."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn


class ConvStem(nn.Sequential):
    """Stride-2 3x3 convolutions in place of one large patch projection (Xiao et al. 2021, "Early convolutions help
    transformers see better"): each layer halves the image, so `len(channels)` layers give patches of `2**len`
    pixels."""

    def __init__(self, channels: tuple[int, ...], in_channels: int = 3):
        layers: list[nn.Module] = []
        for out_channels in channels:
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1),
                nn.GroupNorm(1, out_channels),
                nn.GELU(),
            ]
            in_channels = out_channels
        super().__init__(*layers)


class VisionEncoder(nn.Module):
    """Images to patch features: uint8 [B, h, w, 3] -> float [B, patches, width].

    Pixels are scaled to [-1, 1]. Class and register tokens of the timm model are dropped; the projector sees patches
    only.
    """

    def __init__(self, model: nn.Module, image_size: int):
        super().__init__()
        self.model = model
        self.image_size = image_size
        with torch.no_grad():
            patches = self(torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8))
        self.num_patches, self.width = patches.shape[1], patches.shape[2]

    def forward(self, images: UInt8[Tensor, "B h w 3"]) -> Float[Tensor, "B p d"]:
        if images.shape[1] != self.image_size or images.shape[2] != self.image_size:
            raise ValueError(
                f"the vision encoder takes {self.image_size} x {self.image_size} pixels, "
                f"got {tuple(images.shape[1:3])}: set sim.image_size to the model's, or train a model of this size"
            )
        dtype = next(self.model.parameters()).dtype
        pixels = images.permute(0, 3, 1, 2).to(dtype).div(127.5).sub(1.0).contiguous(memory_format=torch.channels_last)
        return self.model.forward_features(pixels)[:, getattr(self.model, "num_prefix_tokens", 0) :]


def small_vit(image_size: int, width: int, depth: int, num_heads: int, stem_channels: tuple[int, ...]) -> VisionEncoder:
    """A timm Vision Transformer on a convolutional stem: patches of `2**len(stem_channels)` pixels, random weights."""
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer

    patch = 2 ** len(stem_channels)
    if image_size % patch:
        raise ValueError(f"sim.image_size ({image_size}) must be a multiple of the patch size ({patch})")
    model = VisionTransformer(
        img_size=image_size,
        patch_size=1,
        embed_dim=width,
        depth=depth,
        num_heads=num_heads,
        num_classes=0,
        global_pool="",
        class_token=False,
        embed_layer=partial(HybridEmbed, backbone=ConvStem(stem_channels)),
    )
    return VisionEncoder(model.to(memory_format=torch.channels_last), image_size)


def hub_vit(name: str, image_size: int, pretrained: bool) -> VisionEncoder:
    """Any timm Vision Transformer by name; `pretrained` downloads its weights."""
    import timm

    model = timm.create_model(name, pretrained=pretrained, num_classes=0, img_size=image_size)
    return VisionEncoder(model, image_size)
