"""Hidden states and output head of a causal language model of transformers, called separately.

Logits of a whole sequence are the largest tensor of text training (tokens x vocabulary), and most
are never used. So the head runs on chosen positions only.

Shapes: `B` rows, `n` tokens, `m` tokens with the cached ones; in attention `H` heads, `G` key-value
heads, `N` queries, `M` keys, `d` size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vla.data.tree_attention import TreeAttention, build_tree_attention
from vla.finite_checks import check_finite
from vla.models.loading import plain_model

TREE_ATTENTION = "vla_branches"
"""Name of `tree_attention_forward` among the attention functions of transformers."""


def output_head(model: nn.Module) -> nn.Module:
    """The linear layer from hidden states to logits."""
    return plain_model(model).get_output_embeddings()


def hidden_states(
    model: nn.Module,
    tokens: Int[Tensor, "B n"],
    positions: Int[Tensor, "B n"],
    mask: Bool[Tensor, "B m"] | Bool[Tensor, "B 1 n m"] | TreeAttention,
    cache: Cache | None = None,
) -> Float[Tensor, "B n d"]:
    """Last hidden states.

    `mask` is one of three: real tokens [B, m], cached ones included; the whole attention mask [B,
    1, n, m]; or the tree of one packed row, for models with `enable_tree_attention`.
    """
    decoder = plain_model(model).get_decoder()
    if isinstance(mask, TreeAttention):
        # transformers passes a mask of four dimensions on as it is; tree attention ignores it.
        ignored = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device)
        output = decoder(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=ignored,
            use_cache=False,
            branches=mask,
        )
        return output.last_hidden_state
    output = decoder(
        input_ids=tokens,
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return output.last_hidden_state


def tree_attention_forward(
    module: nn.Module,
    query: Float[Tensor, "B H N d"],
    key: Float[Tensor, "B G M d"],
    value: Float[Tensor, "B G M d"],
    attention_mask: Tensor | None,
    *,
    branches: TreeAttention | None = None,
    **settings: Any,
) -> tuple[Float[Tensor, "B N H d"], None]:
    """An attention function of transformers for a row that is a tree; without one, its SDPA."""
    if branches is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    return attend_in_tree(query, key, value, branches, settings.get("scaling")), None


def attend_in_tree(
    query: Float[Tensor, "1 H N d"],
    key: Float[Tensor, "1 G N d"],
    value: Float[Tensor, "1 G N d"],
    branches: TreeAttention,
    scaling: float | None,
) -> Float[Tensor, "1 N H d"]:
    """Attention of every token to those before it on its path from the root."""

    def gather_blocks(tensor: Tensor, slots: Tensor) -> Tensor:
        # Each block of the tree becomes a row of a dense batch: [1, H, N, d] -> [blocks, H, n, d].
        flat = tensor[0].transpose(0, 1).reshape(tensor.shape[2], -1)
        selected = flat.index_select(0, slots.flatten())
        return selected.view(*slots.shape, tensor.shape[1], tensor.shape[3]).transpose(1, 2)

    out = nn.functional.scaled_dot_product_attention(
        gather_blocks(query, branches.queries),
        gather_blocks(key, branches.keys),
        gather_blocks(value, branches.keys),
        attn_mask=branches.visible,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    flat = out.transpose(1, 2).reshape(branches.queries.numel(), -1).index_select(0, branches.order)
    return flat.view(1, query.shape[2], query.shape[1], -1)


AttentionInterface.register(TREE_ATTENTION, tree_attention_forward)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)


@torch.no_grad()
def enable_tree_attention(model: nn.Module) -> bool:
    """Switch a model to tree attention if it gives the same results; True if it is on.

    Conditions: all layers attend to all earlier tokens, no gradient checkpointing, and the hidden
    states of a small tree equal those under a dense mask.
    """
    config = plain_model(model).config
    checkpoints = any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    if checkpoints or not uses_full_attention(model):
        return False
    if config._attn_implementation != "sdpa":
        return config._attn_implementation == TREE_ATTENTION
    device = next(model.parameters()).device
    tree = build_tree_attention([-1, 0, 1, 0], [0, 1, 2, 1]).map(lambda tensor: tensor.to(device))
    tokens = torch.arange(4, device=device)[None]
    positions = torch.tensor([[0, 1, 2, 1]], device=device)
    mask = torch.ones(4, 4, dtype=torch.bool, device=device).tril()
    mask[3, 1:3] = False
    usual = hidden_states(model, tokens, positions, mask[None, None])
    config._attn_implementation = TREE_ATTENTION
    equal = torch.allclose(
        hidden_states(model, tokens, positions, tree), usual, rtol=1e-3, atol=1e-3
    )
    if not equal:
        config._attn_implementation = "sdpa"
    return equal


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0: with dropout, scores would differ from those of the
    draws."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in evaluation mode.

    With gradient checkpointing, training mode has no cache.
    """
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def check_model(model: nn.Module) -> None:
    """Check that a model's logits are its head on its last hidden states.

    Raises:
        ValueError: they are not (logit soft-capping or scaling), so log-probabilities computed here
            would differ from the model's own.
    """
    device = next(model.parameters()).device
    tokens = torch.arange(3, device=device)[None]
    own = plain_model(model)(input_ids=tokens).logits.float()
    check_finite("logits", own)
    ours = output_head(model)(
        hidden_states(model, tokens, tokens, torch.ones_like(tokens, dtype=torch.bool))
    ).float()
    if not torch.allclose(own, ours, rtol=1e-2, atol=1e-2 * float(own.abs().max() + 1e-6)):
        raise ValueError(
            f"model ({type(plain_model(model)).__name__}) changes its logits after the output "
            "head (soft-capping or scaling), but text policies need logits = head(hidden states): "
            "choose another model"
        )


def uses_full_attention(model: nn.Module) -> bool:
    """True if every layer attends to all earlier tokens (no sliding windows, no recurrent
    state)."""
    kinds = getattr(plain_model(model).config, "layer_types", None)
    window = getattr(plain_model(model).config, "sliding_window", None)
    return all(kind == "full_attention" for kind in kinds) if kinds else window is None


class _ReservedLayer(DynamicLayer):
    """Keys and values of one layer in memory reserved once: a new token costs no copy of the
    cache."""

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            rows, heads, _, width = key_states.shape
            self._keys = key_states.new_empty(rows, heads, self.max_length, width)
            self._values = value_states.new_empty(
                rows, heads, self.max_length, value_states.shape[-1]
            )
        end = self.length + key_states.shape[2]
        self._keys[:, :, self.length : end] = key_states
        self._values[:, :, self.length : end] = value_states
        self.length = end
        self.keys = self._keys[:, :, :end]
        self.values = self._values[:, :, :end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` (repeats allowed); only filled positions are copied."""
        for name in ("_keys", "_values"):
            old = getattr(self, name)
            new = old.new_empty(len(indices), *old.shape[1:])
            torch.index_select(old[:, :, : self.length], 0, indices, out=new[:, :, : self.length])
            setattr(self, name, new)
        self.keys = self._keys[:, :, : self.length]
        self.values = self._values[:, :, : self.length]


def make_cache(model: nn.Module, max_length: int) -> Cache:
    """An empty cache for `max_length` tokens; for sliding windows and recurrent states, the growing
    cache of transformers."""
    config = plain_model(model).config
    if not uses_full_attention(model):
        return DynamicCache(config=config)
    return Cache(layers=[_ReservedLayer(max_length) for _ in range(config.num_hidden_layers)])
