"""Language backbones: a transformers causal LM, fed by embeddings and our own attention masks.

A packed token holds more than an embedding: behind it stand the features that deep-stacking adds to
the states of the first layers (DeepStack, Meng et al. 2024; Qwen3-VL), one level after another.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vla.models.loading import BACKBONE, check_folder, load_pretrained

ORDER_SCALES = (0.02, 0.08, 0.3)
"""Length scales of the similarity of ordered ids, as fractions of the whole line."""


@dataclass(frozen=True)
class Heads:
    """The attention of a causal LM in numbers: layers, query heads, key-value heads, and the size
    of a head."""

    num_layers: int
    num_heads: int
    num_key_value_heads: int
    size: int


Rotation = tuple[Float[Tensor, "B N e"], Float[Tensor, "B N e"]]
"""Cosines and sines of a rotary embedding at N positions."""


def join_tokens(parts: Sequence[Float[Tensor, "B _ _"]]) -> Float[Tensor, "B T W"]:
    """Tokens behind each other; zeros are the deep-stacked features of tokens that have none."""
    widest = max(part.shape[-1] for part in parts)
    return torch.cat([functional.pad(part, (0, widest - part.shape[-1])) for part in parts], dim=1)


class Backbone(nn.Module):
    """A causal LM of transformers: embeddings to hidden states, and logits of any part of the
    vocabulary.

    Sliding windows cut what a token attends to, except pairs of tokens that attend to each other
    where `windows_cut_prompts` is False (PaliGemma 2).
    """

    def __init__(self, model: nn.Module, *, windows_cut_prompts: bool = True):
        super().__init__()
        self.model = model
        self.windows_cut_prompts = windows_cut_prompts
        self.width: int = model.get_input_embeddings().weight.shape[1]
        self.vocabulary_size: int = model.get_input_embeddings().weight.shape[0]
        self.first_ordered_id = self.vocabulary_size
        """The first id whose embedding is not the pretrained one."""

    @property
    def word_embeddings(self) -> Float[Tensor, "V d"]:
        return self.model.get_input_embeddings().weight

    @property
    def heads(self) -> Heads:
        config = self.model.get_decoder().config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        grouped = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return Heads(config.num_hidden_layers, config.num_attention_heads, grouped, size)

    @property
    def layer_types(self) -> tuple[str, ...]:
        """The kind of attention of every layer, which a rotary embedding may depend on."""
        config = self.model.get_decoder().config
        kinds = getattr(config, "layer_types", None)
        return tuple(kinds or ["full_attention"] * config.num_hidden_layers)

    def rotations(
        self, positions: Int[Tensor, "B T"], like: Float[Tensor, "B T d"]
    ) -> Mapping[str, Rotation]:
        """Cosines and sines of the rotary embedding at these positions, for every layer type.

        They are in the type of `like`. Gemma 3 rotates local and global layers differently.

        Raises:
            ValueError: the model has no rotary embedding.
        """
        rotary = getattr(self.model.get_decoder(), "rotary_emb", None)
        if rotary is None:
            kind = type(self.model).__name__
            raise ValueError(
                f"{kind} has no rotary positions, which an action expert needs: "
                "choose a Llama-like model"
            )
        if "mrope_section" in (
            getattr(self.model.get_decoder().config, "rope_parameters", None) or {}
        ):
            # Time, row and column (Qwen2.5-VL): text has the same number in all three.
            positions = positions.expand(3, -1, -1)
        kinds = dict.fromkeys(self.layer_types)
        if "layer_type" in inspect.signature(rotary.forward).parameters:
            return {kind: rotary(like, positions, kind) for kind in kinds}
        rotation = rotary(like, positions)
        return dict.fromkeys(kinds, rotation)

    def embed(self, tokens: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows d"]:
        return self.model.get_input_embeddings()(tokens)

    def forward(
        self,
        embeddings: Float[Tensor, "B T W"],
        attend: Bool[Tensor, "B T S"],
        positions: Int[Tensor, "*axes B T"],
        cache: Any = None,
        layers: list[Tensor] | None = None,
    ) -> Float[Tensor, "B T d"]:
        """Hidden states after the last norm, of embeddings or packed tokens.

        `attend[b, i, j]` is True where token i attends to token j; S includes cached tokens.
        Positions may have three axes (M-RoPE). The input of every layer, and the output, is
        appended to `layers`, if given.
        """
        decoder = self.model.get_decoder()
        deep: dict[str, Any] = {}
        if embeddings.shape[-1] > self.width:
            embeddings, *levels = embeddings.split(self.width, dim=-1)
            everywhere = torch.ones_like(attend[..., 0])
            deep = {
                "visual_pos_masks": everywhere,
                "deepstack_visual_embeds": [level.flatten(0, 1) for level in levels],
            }
        output = decoder(
            inputs_embeds=embeddings,
            attention_mask=self._layer_masks(attend, embeddings.dtype),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            output_hidden_states=layers is not None,
            **deep,
        )
        if layers is not None:
            layers.extend(output.hidden_states)
        return output.last_hidden_state

    def _layer_masks(
        self, attend: Bool[Tensor, "B T S"], dtype: torch.dtype
    ) -> Tensor | dict[str, Tensor]:
        """The mask of the layers; one a layer type where a sliding window cuts the sequence."""
        config = self.model.get_decoder().config
        full = attend.unsqueeze(1)
        window = getattr(config, "sliding_window", None)
        length = attend.shape[2]
        if window is None or length <= window:
            return self._for_attention(full, dtype)
        at = torch.arange(length, device=attend.device)
        is_near = at[length - attend.shape[1] :, None] - at < window
        if not self.windows_cut_prompts and attend.shape[1] == length:
            is_near = is_near | full.mT
        masks = {"full_attention": full, "sliding_attention": full & is_near}
        kinds = {*(getattr(config, "layer_types", None) or ["sliding_attention"])}
        chosen = {kind: self._for_attention(masks[kind], dtype) for kind in sorted(kinds)}
        return chosen if len(chosen) > 1 else next(iter(chosen.values()))

    def _for_attention(self, mask: Bool[Tensor, "B 1 T S"], dtype: torch.dtype) -> Tensor:
        """The mask as the attention function takes it: eager attention adds it to its scores."""
        if self.model.get_decoder().config._attn_implementation != "eager":
            return mask
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)

    def logits(
        self, hidden: Float[Tensor, "*rows d"], first: int = 0, last: int | None = None
    ) -> Float[Tensor, "*rows v"]:
        """Next-token logits for the vocabulary ids `first..last` (all by default), in float32."""
        head = self.model.get_output_embeddings()
        logits = nn.functional.linear(hidden, head.weight[first:last]).float()
        # Gemma 2 and PaliGemma 2 bound their logits.
        cap = getattr(self.model.get_decoder().config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def order_embeddings(self, first: int, count: int) -> None:
        """Set the embeddings of `count` ids from `first` on so that neighbouring ids are similar.

        Location and action ids stand for numbers. With independent random embeddings a model learns
        each id separately; with ordered ones it learns a position on a line. The embeddings are
        draws of a Gaussian process over the ids, with the standard deviation of the vocabulary.
        """
        self.first_ordered_id = min(self.first_ordered_id, first)
        weight = self.model.get_input_embeddings().weight
        spread = weight.std()
        at = torch.linspace(0, 1, count, dtype=torch.float64)
        squared = (at[:, None] - at[None]) ** 2
        kernel = torch.stack([torch.exp(-squared / (2 * scale**2)) for scale in ORDER_SCALES]).mean(
            0
        )
        # The jitter keeps the kernel positive definite: close ids are almost equal.
        factor = torch.linalg.cholesky(kernel + 1e-6 * torch.eye(count, dtype=torch.float64))
        rows = (factor.float() @ torch.randn(count, self.width)).to(weight) * spread
        weight[first : first + count] = rows
        # Without tied embeddings the output head needs the same order.
        head = self.model.get_output_embeddings().weight
        if head is not weight:
            head[first : first + count] = rows

    @torch.no_grad()
    def compose_embeddings(self, first: int, count: int, parts: Sequence[Sequence[int]]) -> None:
        """Set the embeddings of the ids behind `count` ordered ones from those of their parts.

        Id `first + count + i` stands for the sequence `parts[i]` of ids, counted from `first`. Its
        embedding is the sum of theirs, each permuted and signed by its place in the sequence, so
        sequences with a common beginning or end are similar. Untrained ids of a pretrained model
        are useless as a start: training has pushed all of them the same way.
        """
        if not parts:
            return
        weight = self.model.get_input_embeddings().weight
        longest = max(len(part) for part in parts)
        order = torch.stack([torch.randperm(self.width) for _ in range(longest)])
        sign = torch.randint(0, 2, (longest, self.width)).to(weight) * 2 - 1
        begin = first + count
        for number, whole in enumerate(parts):
            # Divided by sqrt(length): a sum of independent vectors keeps their norm.
            turned = [weight[first + part][order[at]] * sign[at] for at, part in enumerate(whole)]
            weight[begin + number] = torch.stack(turned).sum(0) / len(whole) ** 0.5
        head = self.model.get_output_embeddings().weight
        if head is not weight:
            head[begin : begin + len(parts)] = weight[begin : begin + len(parts)]

    @staticmethod
    def new_cache() -> Any:
        from transformers import DynamicCache

        return DynamicCache()


def small_llama(
    vocabulary_size: int, width: int, depth: int, num_heads: int, intermediate: int
) -> Backbone:
    """A Llama-style decoder with random weights and tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        intermediate_size=intermediate,
        tie_word_embeddings=True,
        initializer_range=0.5 * width**-0.5,
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        # Keys start equal to queries, so attention starts by matching content (Trockman and Kolter
        # 2023, "Mimetic initialization").
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight.data)
    return Backbone(model)


def check_causal_lm(name_or_path: str) -> None:
    """Check a causal LM by its configuration, before its weights are read.

    Raises:
        ValueError: there is no such folder, or it holds no causal LM.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_folder(name_or_path, BACKBONE)
    config = load_pretrained(AutoConfig, name_or_path, BACKBONE)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        remedy = (
            "it has a vision tower of its own: use model=vlm"
            if hasattr(config, "vision_config")
            else "give a Llama-like one"
        )
        raise ValueError(
            f"{BACKBONE} ({name_or_path}) is a {config.model_type}, which is no causal language "
            f"model: {remedy}"
        )


def hub_backbone(name_or_path: str, dtype: torch.dtype, gradient_checkpointing: bool) -> Backbone:
    """Any causal LM by hub name or local folder."""
    from transformers import AutoModelForCausalLM

    model = load_pretrained(AutoModelForCausalLM, name_or_path, BACKBONE, dtype=dtype)
    backbone = Backbone(model)
    if gradient_checkpointing:
        enable_gradient_checkpointing(backbone)
    return backbone


def enable_gradient_checkpointing(backbone: Backbone) -> None:
    """Store only the input of each layer for the backward pass, and recompute the rest (Chen et
    al. 2016)."""
    backbone.model.activation_checkpointing_enable()
