"""OpenVLA and Prismatic models (Kim et al. 2024; Karamcheti et al. 2024) from the files that their
authors publish.

transformers has no class for them, and timm and transformers have changed since their own code was
written. These classes compute the same: one or two timm towers give the patches of their last but
one block, side by side; an MLP of two layers (three behind two towers) projects them; a causal LM
reads them behind the first token. `WEIGHT_NAMES` converts the names of their state dicts.

Shapes: `B` pictures, `s` pixels a side, `p` patches, `v` width of all towers, `d` width of the
language model, `t` towers.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, ClassVar, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling

WEIGHT_NAMES = {
    "^vision_backbone": "model.vision_backbone",
    "^projector": "model.projector",
    "^language_model.model": "model.language_model",
    "^language_model.lm_head": "lm_head",
    "scale_factor$": "gamma",
}
"""{beginning or end of a published name: what stands for it here}; their LayerScale has a name of
its own."""
LANGUAGE_MODELS = {"llama2": "llama", "vicuna": "llama", "mistral": "mistral", "phi": "phi"}
"""{beginning of `llm_backbone_id`: model type}, for configurations that name no type."""


# transformers makes the `__init__` of a configuration, which takes more than its signature says.
@no_type_check
class PrismaticConfig(PreTrainedConfig):
    """The configuration of a Prismatic model, as its `config.json` holds it."""

    model_type = "prismatic"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")
    }

    timm_model_ids: list[str] = field(default_factory=lambda: ["vit_so400m_patch14_siglip_224"])
    timm_override_act_layers: list[str | None] | None = None
    image_sizes: list[int] = field(default_factory=lambda: [224])
    text_config: Any = None
    llm_backbone_id: str = "llama2-7b-pure"
    norm_stats: dict[str, Any] | None = None
    n_action_bins: int = 256
    pad_to_multiple_of: int = 64
    tie_word_embeddings: bool = False

    def __post_init__(self, **others: Any) -> None:
        if self.timm_override_act_layers is None:
            self.timm_override_act_layers = [None] * len(self.timm_model_ids)
        if isinstance(self.text_config, dict) and "model_type" not in self.text_config:
            kind = next(
                (
                    k
                    for start, k in LANGUAGE_MODELS.items()
                    if self.llm_backbone_id.startswith(start)
                ),
                "llama",
            )
            self.text_config = {**self.text_config, "model_type": kind}
        super().__post_init__(**others)


@no_type_check
class OpenVlaConfig(PrismaticConfig):
    """The configuration of OpenVLA: a Prismatic model with action tokens."""

    model_type = "openvla"


class VisionBackbone(nn.Module):
    """One or two timm towers: pictures of all towers [B, 3 t, s, s] -> patches [B, p, v].

    Blocks and parts behind the last block but one are left out, because they are not read.
    """

    def __init__(self, config: PrismaticConfig):
        super().__init__()
        names = ("featurizer", "fused_featurizer")[: len(config.timm_model_ids)]
        for name, model, size, activation in zip(
            names,
            config.timm_model_ids,
            config.image_sizes,
            config.timm_override_act_layers,
            strict=True,
        ):
            self.add_module(name, _tower(model, size, activation))
        self.names = names
        self.width = sum(getattr(self, name).embed_dim for name in names)

    def forward(self, pixels: Float[Tensor, "B channels s s"]) -> Float[Tensor, "B p v"]:
        patches = [
            getattr(self, name).forward_intermediates(
                part, indices=1, norm=False, output_fmt="NLC", intermediates_only=True
            )[0]
            for name, part in zip(self.names, pixels.split(3, dim=1), strict=True)
        ]
        return torch.cat(patches, dim=-1)


def _tower(name: str, size: int, activation: str | None) -> nn.Module:
    import timm

    tower: Any = timm.create_model(
        name,
        pretrained=False,
        num_classes=0,
        img_size=size,
        act_layer=activation,
        dynamic_img_size=True,
    )
    tower.prune_intermediate_layers([len(tower.blocks) - 2], prune_norm=True, prune_head=True)
    return tower


class Projector(nn.Module):
    """Patches to the width of the language model: two layers, or three behind two towers."""

    def __init__(self, num_towers: int, vision_width: int, width: int):
        super().__init__()
        inner = width if num_towers == 1 else 4 * vision_width
        self.fc1 = nn.Linear(vision_width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.fc3 = None if num_towers == 1 else nn.Linear(width, width)

    def forward(self, patches: Float[Tensor, "B p v"]) -> Float[Tensor, "B p d"]:
        hidden = self.fc2(nn.functional.gelu(self.fc1(patches)))
        return hidden if self.fc3 is None else self.fc3(nn.functional.gelu(hidden))


class PrismaticPreTrainedModel(PreTrainedModel):
    """What transformers asks of every class of a family."""

    config_class = PrismaticConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"featurizer\.(blocks|norm|fc_norm|attn_pool|head)"
    ]

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """Load a model; the names of published weights are converted."""
        return super().from_pretrained(*args, key_mapping=WEIGHT_NAMES, **options)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            module.weight.data.normal_(std=0.02)
            if getattr(module, "bias", None) is not None:
                module.bias.data.zero_()


class PrismaticModel(PrismaticPreTrainedModel):
    """Towers, projector and decoder, without the output embeddings."""

    def __init__(self, config: PrismaticConfig):
        super().__init__(config)
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(
            len(config.timm_model_ids), self.vision_backbone.width, config.text_config.hidden_size
        )
        self.language_model = AutoModelForCausalLM.from_config(config.text_config).get_decoder()
        self.post_init()

    def get_decoder(self, modality: str | None = None) -> Any:
        return self.language_model

    def set_decoder(self, decoder: nn.Module, modality: str | None = None) -> None:
        self.language_model = decoder

    def get_input_embeddings(self) -> Any:
        return self.language_model.get_input_embeddings()

    def get_image_features(
        self, pixel_values: Float[Tensor, "B channels s s"]
    ) -> BaseModelOutputWithPooling:
        """Projected patches [B, p, d], as `pooler_output`."""
        patches = self.vision_backbone(pixel_values)
        return BaseModelOutputWithPooling(
            last_hidden_state=patches, pooler_output=self.projector(patches)
        )


class PrismaticForConditionalGeneration(PrismaticPreTrainedModel):
    """The whole model, which `vla.models.pretrained_vlm` splits."""

    def __init__(self, config: PrismaticConfig):
        super().__init__(config)
        self.model = PrismaticModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> Any:
        return self.lm_head


class OpenVlaForActionPrediction(PrismaticForConditionalGeneration):
    """OpenVLA: the same network, whose last words are action tokens."""

    config_class = OpenVlaConfig


def register() -> None:
    """Make the two model types known to the Auto classes of transformers; again does nothing."""
    pairs = {
        PrismaticConfig: PrismaticForConditionalGeneration,
        OpenVlaConfig: OpenVlaForActionPrediction,
    }
    for config, model in pairs.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForImageTextToText.register(config, model, exist_ok=True)


def pixel_statistics_of_towers(config: PrismaticConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of pixels in [0, 1], three a tower, as timm names them."""
    import timm

    found = [timm.get_pretrained_cfg(name) for name in config.timm_model_ids]
    means = [value for one in found for value in one.mean]
    return means, [value for one in found for value in one.std]
