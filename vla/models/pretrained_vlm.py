"""Pretrained vision-language models of transformers, split into a vision and a language half.

Every model that transformers loads as image-text-to-text can be one, if it gives image features of
its decoder's width (`get_image_features`) and a decoder that takes embeddings (`get_decoder`). The
arguments of its image features say how it takes pictures. What else differs between families is in
one table, `FAMILIES`.

The vision half (tower and connector) replaces a timm encoder and a projector. The language half is
a causal LM like any other.

Shapes: `B` pictures, `s` pixels a side, `p` tokens of a picture, `d` width of the language model,
`W` numbers of a packed token (`vla.models.backbone`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from vla.files.reading import short_message
from vla.models.backbone import Backbone
from vla.models.loading import BACKBONE, check_folder, load_pretrained
from vla.models.token_layout import FLAT, ImageAttention, ImageLayout
from vla.models.vision import pool_tokens

FAMILIES: dict[str, ImageAttention] = {
    "gemma3": "image",
    "paligemma": "prompt",
}
"""What image tokens attend to, by model type of transformers; all others are causal."""

REFUSED = {
    "gemma3n": "its decoder needs embeddings of every layer's own",
    "gemma4": "its decoder needs embeddings of every layer's own",
    "mllama": "its decoder attends to images outside the sequence",
    "qwen3_5": "its layers of linear attention take no attention mask",
    "qwen3_5_moe": "its layers of linear attention take no attention mask",
}
"""Families without a shared sequence of images and text, with the reason, in words."""

TESTED = (
    "gemma3, idefics3, internvl, llava, llava_next, openvla, paligemma, prismatic, qwen2_vl, "
    "qwen2_5_vl, qwen3_vl, smolvlm"
)

PixelInput = Literal["pictures", "stacked", "patches", "tiles"]
"""The pixels that `get_image_features` takes: pictures [B, 3, s, s], one picture a row
[B, 1, 3, s, s] (Idefics3), flat patches with a grid (Qwen), or tiles with a size (LLaVA-Next)."""


class PretrainedVision(nn.Module):
    """Images to tokens of the language model's width: uint8 [B, h, w, 3] -> float [B, p, W].

    `tower` is the inner model of transformers without its language model. Pictures of `image_size`
    pixels are enlarged to `pixels`, a size that the tower supports. Deep-stacked features
    (Qwen3-VL) are packed behind each token. `num_tokens` averages the grid of tokens to a smaller
    one.

    Raises:
        ValueError: the tower cannot take the size, or its tokens form no grid to pool.
    """

    projected = True
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        tower: nn.Module,
        image_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        pixels: int | None = None,
        num_tokens: int | None = None,
        is_native: bool = True,
    ):
        super().__init__()
        self.tower = tower
        self.kind = pixel_input(tower)
        self.image_size = image_size
        self.pixels = tower_pixels(tower, image_size) if pixels is None else pixels
        self.num_tokens = num_tokens
        self.register_buffer("pixel_mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std)[:, None, None], persistent=False)
        with torch.no_grad():
            try:
                tokens = self._tokens(torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8))
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise ValueError(
                    f"{BACKBONE}: a {tower.config.model_type} cannot take pictures of "
                    f"{self.pixels} x {self.pixels} pixels (model.vision.image_size): "
                    f"{short_message(error)}"
                ) from error
        tokens = pool_tokens(tokens, num_tokens)
        self.num_patches = tokens.shape[1]
        self.width = tokens.shape[2]
        self.layout = FLAT
        if is_native:
            side = math.isqrt(self.num_patches)
            self.layout = ImageLayout(
                FAMILIES.get(tower.config.model_type, "causal"),
                (side, side) if has_mrope(tower.config.get_text_config()) else None,
            )

    def forward(self, images: UInt8[Tensor, "B h w 3"]) -> Float[Tensor, "B p W"]:
        return pool_tokens(self._tokens(images), self.num_tokens)

    def _tokens(self, images: UInt8[Tensor, "B h w 3"]) -> Float[Tensor, "B p W"]:
        """All tokens of pictures, with their deep-stacked features."""
        tower: Any = self.tower
        dtype = tower.dtype
        unit = images.permute(0, 3, 1, 2).to(dtype) / 255
        if unit.shape[-1] != self.pixels:
            unit = functional.interpolate(
                unit, (self.pixels, self.pixels), mode="bilinear", align_corners=False
            )
        # Models of several towers take the picture once a tower, each with its own statistics.
        each = unit.repeat(1, len(self.pixel_mean) // 3, 1, 1)
        scaled = (each - self.pixel_mean.to(dtype)) / self.pixel_std.to(dtype)
        deep: list[Any] = []
        match self.kind:
            case "pictures":
                found = tower.get_image_features(scaled, **self._resizing).pooler_output
            case "stacked":
                found = tower.get_image_features(scaled[:, None]).pooler_output
            case "patches":
                output = self._features_by_patches(scaled)
                found = output.pooler_output
                deep = getattr(output, "deepstack_features", None) or []
            case "tiles":
                found = self._features_by_tiles(unit)
        levels = [torch.stack(list(level)).to(dtype) for level in (found, *deep)]
        return torch.cat(levels, dim=-1)

    @property
    def _resizing(self) -> dict[str, bool]:
        """The argument of towers that interpolate their position embeddings, for another size."""
        own = own_pixels(self.tower)
        names = inspect.signature(self._inner_tower.forward).parameters
        other = own is not None and own != self.pixels and "interpolate_pos_encoding" in names
        return {"interpolate_pos_encoding": True} if other else {}

    @property
    def _inner_tower(self) -> nn.Module:
        return getattr(self.tower, "vision_tower", self.tower)

    def _features_by_patches(self, scaled: Float[Tensor, "B 3 s s"]) -> Any:
        """Features of Qwen's towers, which take flat patches: those of one token are adjacent."""
        tower: Any = self.tower
        config = tower.config.vision_config
        rows = len(scaled)
        side = self.pixels // config.patch_size
        merge = config.spatial_merge_size
        cells = (side // merge, merge, config.patch_size)
        parts = scaled.view(rows, scaled.shape[1], *cells, *cells).permute(0, 2, 5, 3, 6, 1, 4, 7)
        # Qwen's patches span two frames of a film; a picture is a film of two equal frames.
        twice = parts.unsqueeze(6).expand(
            *parts.shape[:6], config.temporal_patch_size, *parts.shape[6:]
        )
        grid = torch.tensor([[1, side, side]], device=scaled.device).expand(rows, -1)
        return tower.get_image_features(twice.reshape(rows * side * side, -1), grid)

    def _features_by_tiles(self, unit: Float[Tensor, "B 3 s s"]) -> Any:
        """Features of LLaVA-Next: the whole picture, then the tiles of a canvas that it fits."""
        from transformers.image_processing_utils import select_best_resolution

        tower: Any = self.tower
        side = tower.config.vision_config.image_size
        height, width = select_best_resolution(
            (self.pixels, self.pixels), tower.config.image_grid_pinpoints
        )
        inner = min(height, width)
        fitted = functional.interpolate(unit, (inner, inner), mode="bilinear", align_corners=False)
        top = (height - inner) // 2
        left = (width - inner) // 2
        canvas = functional.pad(
            fitted, (left, width - inner - left, top, height - inner - top), value=0.0
        )
        tiles = canvas.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        whole = functional.interpolate(unit, (side, side), mode="bilinear", align_corners=False)
        pixels = torch.cat([whole[:, None], tiles.flatten(1, 2)], dim=1)
        scaled = (pixels - self.pixel_mean.to(unit)) / self.pixel_std.to(unit)
        sizes = torch.tensor([[self.pixels, self.pixels]]).expand(len(unit), -1)
        return tower.get_image_features(scaled, sizes).pooler_output


class LanguageHalf(nn.Module):
    """A decoder of transformers with its output head, as a causal LM."""

    def __init__(self, decoder: Any, head: nn.Module):
        super().__init__()
        self.model = decoder
        self.lm_head = head
        self.config = decoder.config

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    def get_decoder(self) -> Any:
        return self.model

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def activation_checkpointing_enable(self) -> None:
        self.model.activation_checkpointing_enable()


def pixel_input(tower: Any) -> PixelInput:
    """How a model takes pictures, by the arguments of its `get_image_features`."""
    arguments = inspect.signature(tower.get_image_features).parameters
    if "image_grid_thw" in arguments:
        return "patches"
    if "pixel_attention_mask" in arguments:
        return "stacked"
    return "tiles" if hasattr(tower.config, "image_grid_pinpoints") else "pictures"


def unknown_inputs(tower: Any) -> list[str]:
    """Arguments that the image features of a model need, and that no `PixelInput` gives."""
    known = {"pixel_values", "image_grid_thw"}
    if pixel_input(tower) == "tiles":
        known.add("image_sizes")
    arguments = inspect.signature(tower.get_image_features).parameters
    needed = {
        name
        for name, one in arguments.items()
        if one.default is one.empty and one.kind is not one.VAR_KEYWORD
    }
    # Video-LLaVA has two inputs of pixels, one of them for films.
    return sorted((needed | ({"pixel_values_images"} & {*arguments})) - known)


def own_pixels(tower: Any) -> int | None:
    """The pixels a side that a tower was trained with; None where it takes any size."""
    if isinstance(getattr(tower.config, "image_sizes", None), list):
        return tower.config.image_sizes[0]  # Prismatic
    size = getattr(tower.config.vision_config, "image_size", None)
    return size[0] if isinstance(size, list | tuple) else size


def tower_pixels(tower: Any, image_size: int) -> int:
    """The pixels a side of a tower's input: its own, or the least whole number of its patches."""
    if pixel_input(tower) != "patches":
        return own_pixels(tower) or image_size
    vision = tower.config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    return -(-image_size // side) * side


def has_mrope(config: Any) -> bool:
    """True where positions have three axes: time, row and column."""
    return "mrope_section" in (getattr(config, "rope_parameters", None) or {})


def pixel_statistics(
    name_or_path: str | None, model_type: str
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of pixels in [0, 1]: those saved beside a model, else its
    family's."""
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    values: dict[str, Any] = {}
    if name_or_path is not None:
        try:
            values, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
        except (OSError, ValueError):  # a model saved without its processor
            values = {}
    if "means" in values and "stds" in values:  # Prismatic, a row a tower
        return _flat(values["means"]), _flat(values["stds"])
    family = _processor_class(IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type))
    mean = values.get("image_mean", getattr(family, "image_mean", None))
    std = values.get("image_std", getattr(family, "image_std", None))
    if mean is None or std is None or not values.get("do_normalize", True):
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return mean, std


def _flat(rows: Sequence[Sequence[float]]) -> list[float]:
    return [value for row in rows for value in row]


def _processor_class(names: Any) -> Any:
    """The class of an image processor from a line of transformers' table."""
    import transformers

    listed = names.values() if isinstance(names, dict) else names or ()
    found = [getattr(transformers, name, None) for name in listed if name is not None]
    return next((kind for kind in found if kind is not None), None)


def check_vlm(name_or_path: str) -> None:
    """Check a vision-language model by its configuration, before its weights are read.

    Raises:
        ValueError: there is no such folder, it holds no vision-language model, or one that cannot
            be split.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    from vla.models import prismatic

    prismatic.register()
    check_folder(name_or_path, BACKBONE)
    config = load_pretrained(AutoConfig, name_or_path, BACKBONE)
    kind = config.model_type
    if kind in REFUSED:
        raise ValueError(
            f"{BACKBONE} ({name_or_path}) is a {kind}, which is no backbone: {REFUSED[kind]}; "
            f"choose one of {TESTED}"
        )
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ValueError(
            f"{BACKBONE} ({name_or_path}) is a {kind}, which takes no pictures: give a "
            "vision-language model, or use this one by model=hub, which gives it a vision tower"
        )
    if getattr(config.get_text_config(), "is_encoder_decoder", False):
        raise ValueError(
            f"{BACKBONE} ({name_or_path}) is a {kind}, whose decoder attends to an encoder instead "
            f"of a shared sequence: choose one of {TESTED}"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
    except Exception as error:  # classes raise errors of their own
        raise ValueError(
            f"{BACKBONE} ({name_or_path}) is a {kind} that its configuration cannot build: "
            f"{short_message(error)}"
        ) from error
    _check_halves(model, name_or_path)


def _check_halves(model: Any, name_or_path: str) -> None:
    """Check that a model gives image features and a decoder.

    Raises:
        ValueError: it does not.
    """
    inner = getattr(model, "model", None)
    decoder = getattr(inner, "get_decoder", lambda: None)()
    config = getattr(decoder, "config", None)
    kinds = {*(getattr(config, "layer_types", None) or ())}
    problem = None
    if not hasattr(inner, "get_image_features") or model.get_output_embeddings() is None:
        problem = "gives no image features"
    elif decoder is None or decoder is inner or decoder.get_input_embeddings() is None:
        problem = "gives no decoder"
    elif not kinds <= {"full_attention", "sliding_attention"}:
        problem = f"has layers of {', '.join(sorted(kinds))}, which take no attention mask of ours"
    elif unknown := unknown_inputs(inner):
        problem = f"takes pictures with {', '.join(unknown)}, which are not made here"
    if problem is not None:
        raise ValueError(
            f"{BACKBONE} ({name_or_path}) is a {model.config.model_type}, which {problem}: choose "
            f"one of {TESTED}"
        )


def load_pretrained_vlm(
    name_or_path: str,
    image_size: int,
    dtype: torch.dtype,
    *,
    pixels: int | None = None,
    num_tokens: int | None = None,
    is_native: bool = True,
) -> tuple[PretrainedVision, Backbone]:
    """The two halves of a model by hub name or local folder.

    Raises:
        ValueError: the model is of an unsupported kind, or cannot be loaded.
    """
    from transformers import AutoModelForImageTextToText

    check_vlm(name_or_path)
    model = load_pretrained(AutoModelForImageTextToText, name_or_path, BACKBONE, dtype=dtype)
    return split_vlm(
        model,
        image_size,
        name_or_path=name_or_path,
        pixels=pixels,
        num_tokens=num_tokens,
        is_native=is_native,
    )


def split_vlm(
    model: Any,
    image_size: int,
    *,
    name_or_path: str | None = None,
    pixels: int | None = None,
    num_tokens: int | None = None,
    is_native: bool = True,
) -> tuple[PretrainedVision, Backbone]:
    """The vision half and the language half of a loaded model; they share no weights."""
    inner = model.model
    language = LanguageHalf(inner.get_decoder(), model.get_output_embeddings())
    inner.set_decoder(nn.Identity())
    mean, std = pixel_statistics(name_or_path, model.config.model_type)
    if hasattr(model.config, "timm_model_ids") and len(mean) != 3 * len(model.config.image_sizes):
        from vla.models.prismatic import pixel_statistics_of_towers

        mean, std = pixel_statistics_of_towers(model.config)
    vision = PretrainedVision(
        inner,
        image_size,
        mean=mean,
        std=std,
        pixels=pixels,
        num_tokens=num_tokens,
        is_native=is_native,
    )
    return vision, Backbone(language, windows_cut_prompts=vision.layout.attention != "prompt")
