"""An action expert (Black et al. 2024, pi0): a small transformer beside the language model, with
weights of its own, whose layer i attends to the keys and values of the language model's layer i.

The language model runs over `[prefix | text | queries]` once. The expert has one token a control
step. Its tokens attend to that sequence and to each other; the sequence does not attend to them (a
block-causal mask). The time of the denoising process enters through adaptive norms (Peebles and Xie
2023; pi0.5).

Shapes: `B` rows, `S` samples of a row that do not attend to each other, `H` control steps, `a`
values of an action, `T` tokens of the sequence, `q` queries, `l` layers, `d` width of the language
model, `W` numbers of a prefix token (`vla.models.backbone`), `D` numbers of a stored token
(d + 2 l g e), `w` width of the expert, `g` key-value heads,
`e` size of a head, `N` expert tokens (S H), `M` keys (T + N).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from vla.models.backbone import Rotation
from vla.models.plan_head import ActionReadout
from vla.models.vlm import VisionLanguageModel
from vla.types import Observation, map_rows

SHORTEST_PERIOD = 4e-3
LONGEST_PERIOD = 4.0
"""Periods of the sine waves that encode a time in [0, 1]."""


@dataclass(frozen=True)
class ExpertContext:
    """The expert's input from the language model, computed once a decision.

    Rotated keys and values of every layer, a mask of the real tokens, the rotations (cosines,
    sines) at the positions behind them by layer type, the type of every layer, and the states of
    the queries.
    """

    keys: Float[Tensor, "l B g T e"]
    values: Float[Tensor, "l B g T e"]
    visible: Bool[Tensor, "B T"]
    rotations: Mapping[str, Rotation]
    layer_types: tuple[str, ...]
    states: Float[Tensor, "B H d"]


class RecordingCache(DynamicCache):
    """A cache that records the rotated keys and values of each layer, once.

    Gradient checkpointing runs a layer twice; the second run records nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recorded: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> Any:
        self.recorded.setdefault(layer_idx, (key_states, value_states))
        return key_states, value_states


class FrozenPrefixCache(DynamicCache):
    """A cache that prepends the keys and values of a prefix, and stores no new ones."""

    def __init__(self, keys: Float[Tensor, "l B g T e"], values: Float[Tensor, "l B g T e"]):
        super().__init__()
        self.prefix = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> Any:
        keys, values = (part[layer_idx] for part in self.prefix)
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)


def allow_checkpointing_with_cache(decoder: nn.Module) -> None:
    """Allow gradient checkpointing with a cache in a decoder's layers.

    transformers drops the cache otherwise. It is safe here: the caches do not change between the
    two runs of a layer.
    """
    for layer in decoder.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer._can_checkpoint_with_cache = True


def build_prefix_cache(
    model: VisionLanguageModel,
    readout: ActionReadout,
    prefix: Float[Tensor, "B P W"],
    observation: Observation,
    *,
    dedup: bool = False,
) -> Float[Tensor, "B T D"]:
    """Run the language model over `[prefix | text | queries]` and pack the result into one tensor.

    For every token: the query states [d] (zeros for other tokens), then keys and values of all
    layers. With `dedup`, equal rows are computed once: rows of branched rollouts come from few
    states, and computing each again would take most of an update.
    """
    if dedup:
        first, inverse = _unique_rows(prefix, observation)
        distinct = map_rows(replace(observation, images={}), lambda tensor: tensor[first])
        return build_prefix_cache(model, readout, prefix[first], distinct)[inverse]
    cache = RecordingCache()
    allow_checkpointing_with_cache(model.backbone.model.get_decoder())
    hidden = readout.encode(model, prefix, observation, cache)
    layers = [cache.recorded[layer] for layer in sorted(cache.recorded)]
    both = torch.stack([keys for keys, _ in layers] + [values for _, values in layers])
    # [2 l, B, g, T, e] -> [B, T, 2 l g e]: a trace indexes rows first, so tokens stay rows.
    packed = both.permute(1, 3, 0, 2, 4).flatten(2)
    padded = functional.pad(hidden, (0, 0, packed.shape[1] - hidden.shape[1], 0))
    return torch.cat([padded, packed], dim=2)


def _unique_rows(
    prefix: Float[Tensor, "B P W"], observation: Observation
) -> tuple[Int[Tensor, "S"], Int[Tensor, "B"]]:
    """First row of each distinct (prefix, text), and the number of the distinct row of every
    row."""
    tokens = observation.tokens.to(prefix.dtype)
    mask = observation.token_mask.to(prefix.dtype)
    content = torch.cat([prefix.detach().flatten(1), tokens, mask], dim=1)
    unique, inverse = torch.unique(content, dim=0, return_inverse=True)
    rows = torch.arange(len(content), device=inverse.device)
    # torch.unique gives no index of a first occurrence: the least row number of each group is it.
    first = torch.full((len(unique),), len(content), device=inverse.device)
    return first.scatter_reduce(0, inverse, rows, "amin"), inverse


@dataclass(frozen=True)
class PrefixCache:
    """The unpacked output of `build_prefix_cache`.

    Rotated keys and values of every layer, a mask of the real tokens, the position behind them, and
    the states of the queries with label and plan added.
    """

    keys: Float[Tensor, "l B g T e"]
    values: Float[Tensor, "l B g T e"]
    visible: Bool[Tensor, "B T"]
    end: Int[Tensor, "B 1"]
    states: Float[Tensor, "B q d"]

    def frozen_cache(self, model: VisionLanguageModel) -> FrozenPrefixCache:
        """A cache for tokens behind the prefix, all of them in one call."""
        allow_checkpointing_with_cache(model.backbone.model.get_decoder())
        return FrozenPrefixCache(self.keys, self.values)

    def growing_cache(self) -> DynamicCache:
        """A cache for tokens behind the prefix, one call a token."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(keys, values, layer)
        return cache


def unpack_prefix_cache(
    model: VisionLanguageModel,
    readout: ActionReadout,
    packed: Float[Tensor, "B T D"],
    observation: Observation,
    stop_gradient_to_vlm: bool = False,
) -> PrefixCache:
    """Unpack the output of `build_prefix_cache` for a head.

    With `stop_gradient_to_vlm` no gradient passes (knowledge insulation, Driess et al. 2025).
    """
    packed = packed.detach() if stop_gradient_to_vlm else packed
    mask = observation.token_mask
    num_queries = len(readout.queries)
    heads = model.backbone.heads
    # Only the last tokens, the queries, have states; the rows before them are padding.
    hidden = packed[:, -num_queries:, : model.width]
    rest = packed[..., model.width :]
    both = rest.unflatten(2, (2, heads.num_layers, heads.num_key_value_heads, heads.size)).permute(
        2, 3, 0, 4, 1, 5
    )
    # Prefix and queries are always there; of the text, all but its padding.
    num_prefix = packed.shape[1] - mask.shape[1] - num_queries
    visible = torch.ones(packed.shape[:2], dtype=torch.bool, device=mask.device)
    visible[:, num_prefix : num_prefix + mask.shape[1]] = mask
    span = model.layout.span if num_prefix else 0
    text = model.layout.advances(observation.tokens, mask).sum(1, keepdim=True)
    return PrefixCache(
        both[0],
        both[1],
        visible,
        span + text + num_queries,
        readout.interpret(model, hidden, observation, stop_gradient_to_vlm),
    )


def make_expert_context(
    model: VisionLanguageModel,
    readout: ActionReadout,
    packed: Float[Tensor, "B T D"],
    observation: Observation,
    stop_gradient_to_vlm: bool = False,
) -> ExpertContext:
    """Unpack the output of `build_prefix_cache` for the action expert."""
    prefix = unpack_prefix_cache(model, readout, packed, observation, stop_gradient_to_vlm)
    # The expert's tokens take the positions of the queries again, behind the real tokens.
    positions = prefix.end + torch.arange(len(readout.queries), device=packed.device)
    return ExpertContext(
        prefix.keys,
        prefix.values,
        prefix.visible,
        model.backbone.rotations(positions, prefix.states),
        model.backbone.layer_types,
        prefix.states,
    )


class ActionExpert(nn.Module):
    """A transformer from noised chunks and their times to predictions of the process.

    The second output places the log standard deviation of learned noise between its bounds: 0 is
    the least, 1 the largest.
    """

    def __init__(
        self, model: VisionLanguageModel, chunk: int, num_values: int, width: int, intermediate: int
    ):
        super().__init__()
        heads = model.backbone.heads
        self.width = width
        self.chunk = chunk
        self.enter = nn.Linear(num_values, width)
        self.place = nn.Parameter(torch.randn(chunk, width) * 0.02)
        self.read = nn.Sequential(nn.LayerNorm(model.width), nn.Linear(model.width, width))
        self.time = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.layers = nn.ModuleList(
            ExpertLayer(width, intermediate, heads.num_heads, heads.num_key_value_heads, heads.size)
            for _ in range(heads.num_layers)
        )
        self.norm = AdaptiveNorm(width)
        self.leave = nn.Linear(width, num_values)
        self.noise = nn.Linear(width, num_values)
        for layer in (self.leave, self.noise):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, noised: Float[Tensor, "B S H a"], time: Float[Tensor, "B S"], context: ExpertContext
    ) -> tuple[Float[Tensor, "B S H a"], Float[Tensor, "B S H a"]]:
        samples, steps = noised.shape[1:3]
        hidden = self.enter(noised) + self.place + self.read(context.states)[:, None]
        condition = self.time(sinusoidal_embedding(time, self.width))[:, :, None]
        rotations = {
            kind: tuple(part.repeat(1, samples, 1)[:, None] for part in rotation)
            for kind, rotation in context.rotations.items()
        }
        # All samples of a row go through in one sequence; a token attends to its own sample only.
        block = torch.arange(samples, device=noised.device).repeat_interleave(steps)
        own = (block[:, None] == block).expand(len(noised), -1, -1)
        attend = torch.cat([context.visible[:, None].expand(-1, len(block), -1), own], dim=2)[
            :, None
        ]
        for layer, kind, keys, values in zip(
            self.layers, context.layer_types, context.keys, context.values, strict=True
        ):
            hidden = layer(hidden, condition, keys, values, rotations[kind], attend)
        hidden, _ = self.norm(hidden, condition)
        return self.leave(hidden), self.noise(hidden).sigmoid()


class ExpertLayer(nn.Module):
    """Attention over the prefix and the chunk itself, then a gated MLP; both behind adaptive
    norms."""

    def __init__(
        self, width: int, intermediate: int, num_heads: int, num_key_value_heads: int, size: int
    ):
        super().__init__()
        self.size = size
        self.attention_norm = AdaptiveNorm(width)
        self.mlp_norm = AdaptiveNorm(width)
        self.queries = nn.Linear(width, num_heads * size, bias=False)
        self.keys = nn.Linear(width, num_key_value_heads * size, bias=False)
        self.values = nn.Linear(width, num_key_value_heads * size, bias=False)
        self.out = nn.Linear(num_heads * size, width, bias=False)
        self.gate = nn.Linear(width, intermediate, bias=False)
        self.up = nn.Linear(width, intermediate, bias=False)
        self.down = nn.Linear(intermediate, width, bias=False)

    def forward(
        self,
        hidden: Float[Tensor, "B S H w"],
        condition: Float[Tensor, "B S 1 w"],
        keys: Float[Tensor, "B g T e"],
        values: Float[Tensor, "B g T e"],
        rotation: tuple[Tensor, ...],
        attend: Bool[Tensor, "B 1 N M"],
    ) -> Float[Tensor, "B S H w"]:
        normed, gate = self.attention_norm(hidden, condition)
        # Samples and steps become one token axis: [B, S, H, w] -> [B, S H, w].
        tokens = normed.flatten(1, 2)
        queries = rotate(self._split(self.queries(tokens)), rotation)
        own_keys = rotate(self._split(self.keys(tokens)), rotation)
        own_values = self._split(self.values(tokens))
        # The prefix may be in another type than the expert, e.g. bfloat16.
        mixed = functional.scaled_dot_product_attention(
            queries,
            torch.cat([keys.to(own_keys.dtype), own_keys], dim=2),
            torch.cat([values.to(own_values.dtype), own_values], dim=2),
            attn_mask=attend,
            enable_gqa=queries.shape[1] != own_keys.shape[1],
        )
        hidden = hidden + gate * self.out(mixed.transpose(1, 2).flatten(2)).view_as(hidden)
        normed, gate = self.mlp_norm(hidden, condition)
        return hidden + gate * self.down(functional.silu(self.gate(normed)) * self.up(normed))

    def _split(self, projected: Float[Tensor, "B N _"]) -> Float[Tensor, "B _ N e"]:
        return projected.unflatten(-1, (-1, self.size)).transpose(1, 2)


class AdaptiveNorm(nn.Module):
    """RMS norm with scale, shift and the gate of the next layer from a condition.

    Scale 1, shift 0 and gate 1 at the start.
    """

    def __init__(self, width: int):
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, hidden: Float[Tensor, "B S H w"], condition: Float[Tensor, "B S 1 w"]
    ) -> tuple[Float[Tensor, "B S H w"], Float[Tensor, "B S 1 w"]]:
        scale, shift, gate = self.modulation(condition).chunk(3, dim=-1)
        normed = functional.rms_norm(hidden, hidden.shape[-1:], eps=1e-6)
        return normed * (1 + scale) + shift, 1 + gate


def rotate(
    heads: Float[Tensor, "B h N e"], rotation: tuple[Tensor, ...]
) -> Float[Tensor, "B h N e"]:
    """Rotary position embedding (Su et al. 2021), halves paired as in Llama."""
    cos, sin = rotation
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


def sinusoidal_embedding(time: Float[Tensor, "*rows"], width: int) -> Float[Tensor, "*rows w"]:
    """Sines and cosines of a time in [0, 1], their periods spaced evenly in their logarithm."""
    share = torch.linspace(0, 1, width // 2, device=time.device)
    period = SHORTEST_PERIOD * (LONGEST_PERIOD / SHORTEST_PERIOD) ** share
    angle = 2 * math.pi * time[..., None] / period
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
