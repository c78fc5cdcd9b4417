"""Vision encoders, which scale uint8 pixels to the range of their weights: timm models and a small
one that trains on a laptop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from vla.spelling import did_you_mean

HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation of pixels in [0, 1] that map them to [-1, 1]."""


class ConvStem(nn.Sequential):
    """Stride-2 3x3 convolutions in place of one large patch projection (Xiao et al. 2021, "Early
    convolutions help transformers see better"): each layer halves the image, so `len(channels)`
    layers give patches of `2**len` pixels."""

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

    Pixels are scaled by the `mean` and `std` (of pixels in [0, 1]) of the timm model's training.
    Class and register tokens are dropped; the projector takes patches only. Maps of convolutional
    models become tokens row by row. Pictures are enlarged to `pixels`, e.g. where the model needs a
    whole number of patches. `num_tokens` averages the grid of tokens to a smaller one.

    Raises:
        ValueError: the tokens cannot be averaged to `num_tokens`.
    """

    pixel_std: Tensor
    pixel_shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        image_size: int,
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        pixels: int | None = None,
        num_tokens: int | None = None,
    ):
        super().__init__()
        self.model = model
        self.num_tokens = num_tokens
        self.image_size = image_size
        self.pixels = pixels or image_size
        spread = torch.tensor(std)
        self.register_buffer("pixel_std", 255 * spread[:, None, None], persistent=False)
        self.register_buffer(
            "pixel_shift", (torch.tensor(mean) / spread)[:, None, None], persistent=False
        )
        self.train()
        with torch.no_grad():
            patches = self(torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8))
        self.num_patches = patches.shape[1]
        self.width = patches.shape[2]

    def forward(self, images: UInt8[Tensor, "B h w 3"]) -> Float[Tensor, "B p d"]:
        if images.shape[1] != self.image_size or images.shape[2] != self.image_size:
            raise ValueError(
                f"the vision encoder takes {self.image_size} x {self.image_size} pixels, "
                f"got "
                f"{tuple(images.shape[1:3])}: set sim.image_size to the model's, or train a model "
                "of "
                "this size"
            )
        dtype = next(self.model.parameters()).dtype
        pixels = images.permute(0, 3, 1, 2).to(dtype)
        if self.pixels != self.image_size:
            pixels = functional.interpolate(
                pixels, (self.pixels, self.pixels), mode="bilinear", align_corners=False
            )
        pixels = pixels.div(self.pixel_std.to(dtype)).sub(self.pixel_shift.to(dtype))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return pool_tokens(patch_tokens(self.model, pixels), self.num_tokens)

    def train(self, mode: bool = True) -> VisionEncoder:
        """Set the mode, with batch normalisation always in evaluation mode.

        The features of a picture must not depend on the rest of the batch.
        """
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def patch_tokens(model: nn.Module, pixels: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B p d"]:
    """The patch features of any timm model: tokens without the prefix, or the cells of a map."""
    features: Tensor = model.forward_features(pixels)  # type: ignore[operator]
    if features.ndim == 4:
        channels_last = str(getattr(model, "output_fmt", "NCHW")) == "NHWC"
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)
    return features[:, getattr(model, "num_prefix_tokens", 0) :]


def pool_tokens(tokens: Float[Tensor, "B p d"], num_tokens: int | None) -> Float[Tensor, "B _ d"]:
    """The means of `num_tokens` areas of a square grid of tokens; None keeps all.

    Raises:
        ValueError: the tokens form no square, or are fewer.
    """
    if num_tokens is None or num_tokens == tokens.shape[1]:
        return tokens
    side = math.isqrt(tokens.shape[1])
    if side**2 != tokens.shape[1] or num_tokens > tokens.shape[1]:
        raise ValueError(
            f"model.vision.num_tokens ({num_tokens}) cannot be averaged from the "
            f"{tokens.shape[1]} tokens of a picture: choose fewer, or null"
        )
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))
    return functional.adaptive_avg_pool2d(grid, math.isqrt(num_tokens)).flatten(2).mT


def small_vit(
    image_size: int, width: int, depth: int, num_heads: int, stem_channels: tuple[int, ...]
) -> VisionEncoder:
    """A timm Vision Transformer on a convolutional stem: patches of `2**len(stem_channels)` pixels,
    random weights."""
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer

    patch = 2 ** len(stem_channels)
    if image_size % patch:
        raise ValueError(
            f"sim.image_size ({image_size}) must be a multiple of the patch size ({patch})"
        )
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


def hub_vit(
    name: str,
    image_size: int,
    pretrained: bool,
    pixels: int | None = None,
    num_tokens: int | None = None,
) -> VisionEncoder:
    """Any timm model by name, with the pixels that it was trained on.

    `pretrained` downloads its weights. `pixels` a side of its input are those of a picture (None),
    in whole patches.
    """
    import timm

    config = timm_config(name, pretrained)
    arguments, pixels = timm_arguments(name, config, pixels or image_size)
    model = timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
    return VisionEncoder(model, image_size, config.mean, config.std, pixels, num_tokens)


def check_tower(name: str, image_size: int, pretrained: bool) -> None:
    """Check a timm model before its weights are downloaded.

    `image_size` are the pixels a side of its input.

    Raises:
        ValueError: no such model (with the nearest name), or its output is no grid of patches.
    """
    import timm

    config = timm_config(name, pretrained)
    try:
        with torch.device("meta"):
            arguments, pixels = timm_arguments(name, config, image_size)
            model = timm.create_model(name, pretrained=False, num_classes=0, **arguments).eval()
            tokens = patch_tokens(model, torch.zeros(1, 3, pixels, pixels))
    except (TypeError, AttributeError, AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"model.vision.repository={name} cannot take {image_size} x {image_size} pixels "
            f"(sim.image_size): {reason}; "
            "choose another size or another model, as vit_small_patch14_dinov2.lvd142m"
        ) from error
    if tokens.shape[1] < 2 or math.isqrt(tokens.shape[1]) ** 2 != tokens.shape[1]:
        raise ValueError(
            f"model.vision.repository={name} makes {tokens.shape[1]} tokens of {image_size} x "
            f"{image_size} pixels "
            "(sim.image_size), which are no grid of places: raise sim.image_size, or choose "
            "another model, as "
            "vit_small_patch14_dinov2.lvd142m"
        )


def timm_config(name: str, pretrained: bool) -> Any:
    """The pretrained config of a timm model: pixel mean and standard deviation, fixed size or not.

    Raises:
        ValueError: there is no such model (with the nearest name), or it has no weights.
    """
    import timm
    from timm import models

    try:
        source, known_as = models.parse_model_name(name)
        config = None if source else timm.get_pretrained_cfg(name)
    except ValueError as error:
        raise ValueError(f"model.vision.repository: {error}") from error
    except RuntimeError:  # an unknown tag
        source = None
        config = None
    if source:
        load_config = (
            models.load_model_config_from_hf
            if source == "hf-hub"
            else models.load_model_config_from_path
        )
        config = load_config(known_as)[0]
        return models.PretrainedCfg(
            **{f.name: config[f.name] for f in fields(models.PretrainedCfg) if f.name in config}
        )
    if config is None:
        hint = did_you_mean(name, [*timm.list_pretrained(), *timm.list_models()])
        raise ValueError(
            f"model.vision.repository={name} is no model of timm{hint}; "
            "timm.list_models() lists all"
        )
    if pretrained and not config.has_weights:
        raise ValueError(
            f"timm has no weights of model.vision.repository={name}: set "
            "model.vision.pretrained=false"
        )
    return config


def timm_arguments(name: str, config: Any, image_size: int) -> tuple[dict[str, Any], int]:
    """Arguments of `create_model` for pictures of a size, and the pixels a side of its input.

    The pixels are a whole number of patches.
    """
    import timm

    if not config.fixed_input_size:
        return {}, image_size
    with torch.device("meta"):
        embedding = getattr(
            timm.create_model(name, pretrained=False, num_classes=0), "patch_embed", None
        )
    size = getattr(embedding, "patch_size", 1)
    patch = size if isinstance(size, int) else size[0]
    pixels = -(-image_size // patch) * patch
    return {"img_size": pixels}, pixels
