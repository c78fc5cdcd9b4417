"""Reward models: a language model with a scalar head on the last token of a completion (Ziegler
2019, Stiennon 2020).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.data.prefix_tree import pack_completions
from vla.generation.hf_decoder import (
    disable_dropout,
    enable_tree_attention,
    hidden_states,
    plain_model,
    uses_full_attention,
)


class RewardModel(nn.Module):
    """Reward = (head(hidden state of the completion's last token) - offset) / scale.

    The head starts at zero: one epoch of few comparisons cannot undo the spread of a random head
    (Stiennon 2020). `normalize` sets offset and scale after training, so that rewards have mean 0
    and standard deviation 1 on reference completions. Training changes `model` too: give a copy
    where the policy must stay as it is.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, pad_id: int, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        disable_dropout(model)
        self.model = model
        self.pad_id = pad_id
        self.autocast = autocast
        self.share_prompts, self.branches = uses_full_attention(model), enable_tree_attention(model)
        width = plain_model(model).config.hidden_size
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.to(next(model.parameters()).device)

    def forward(
        self,
        prompts: Int[Tensor, "B n"],
        prompt_mask: Bool[Tensor, "B n"],
        completions: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B"]:
        """The reward of every completion (right-padded ids); shared prompts are encoded once."""
        # A last token that is never fed makes the packer keep the slot of the completion's real
        # last token.
        completions = torch.nn.functional.pad(completions, (0, 1))
        lengths = mask.sum(1)
        mask = torch.arange(completions.shape[1], device=mask.device) <= lengths[:, None]
        rows = pack_completions(
            prompts,
            prompt_mask,
            completions,
            mask,
            self.share_prompts,
            max_row_tokens=256,
            one_tree=self.share_prompts and self.branches,
        )
        device = prompts.device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            hidden = hidden_states(self.model, rows.tokens, rows.positions, rows.attention).flatten(
                0, 1
            )
        last = rows.slots[(lengths + 1).cumsum(0) - 1]
        return (self.head(hidden[last].float()).squeeze(-1) - self.offset) / self.scale

    @torch.no_grad()
    def normalize(self, rewards: Float[Tensor, "K"]) -> None:
        """Set offset and scale so that these rewards have mean 0 and standard deviation 1."""
        self.offset += rewards.mean() * self.scale
        if len(rewards) > 1 and float(rewards.std()) > 0:
            self.scale *= rewards.std()
