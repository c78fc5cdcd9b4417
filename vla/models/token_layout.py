"""The layout of a prefix: positions of its tokens, and which of them attend to which.

Pretrained vision-language models differ in both. Qwen gives image tokens a time, a row and a column
(M-RoPE, Wang et al. 2024, Qwen2-VL). Gemma 3 lets the tokens of one picture attend to each other,
PaliGemma those of the whole prompt; others are causal throughout. A model of our own, and a run of
an earlier version, has a prefix without any order (`FLAT`).

Shapes: `B` rows, `P` prefix tokens, `n` text tokens, `x` axes of a position (1, or 3 for M-RoPE).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

ImageAttention = Literal["flat", "causal", "image", "prompt"]
"""What image tokens attend to.

flat: the whole prefix, in both directions. causal: earlier tokens. image: earlier tokens, and all
of the same picture. prompt: the whole prompt in both directions, its text included.
"""


@dataclass(frozen=True)
class ImageLayout:
    """The tokens of one picture for the language model.

    Attributes:
        attention: what they attend to.
        grid: rows and columns, where a position has three axes (M-RoPE); None for one axis.
    """

    attention: ImageAttention = "flat"
    grid: tuple[int, int] | None = None


FLAT = ImageLayout()


class PrefixLayout(nn.Module):
    """Positions and attention of a prefix of pictures, followed by a state token.

    `advance` [P] is how far the position moves on behind each token, `offset` [x, P] the distance
    of a token from it, `attend` [P, P] is True where token i attends to token j.
    """

    advance: Tensor
    offset: Tensor
    picture: Tensor
    attend: Tensor

    def __init__(self, layout: ImageLayout, num_pictures: int, num_tokens: int):
        super().__init__()
        self.attention = layout.attention
        self.num_axes = 1 if layout.grid is None else 3
        advance = torch.ones(num_tokens, dtype=torch.long)
        offset = torch.zeros(self.num_axes, num_tokens, dtype=torch.long)
        if layout.grid is not None:
            rows, columns = layout.grid
            # The text behind a picture continues after the larger of its two sides.
            advance.zero_()[-1] = max(rows, columns)
            offset[1] = torch.arange(rows).repeat_interleave(columns)
            offset[2] = torch.arange(columns).repeat(rows)
        picture = torch.arange(num_pictures).repeat_interleave(num_tokens)
        self._register("advance", torch.cat([advance.repeat(num_pictures), torch.ones(1).long()]))
        self._register(
            "offset",
            torch.cat([offset.repeat(1, num_pictures), offset.new_zeros(len(offset), 1)], 1),
        )
        self._register("picture", torch.cat([picture, torch.tensor([num_pictures])]))
        total = len(self.advance)
        together = self.picture[:, None] == self.picture
        causal = torch.ones(total, total, dtype=torch.bool).tril()
        match layout.attention:
            case "flat" | "prompt":
                attend = torch.ones_like(causal)
            case "image":
                attend = causal | together
            case "causal":
                attend = causal
        self._register("attend", attend)
        self.span = int(self.advance.sum())

    def _register(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def positions(self, text: Int[Tensor, "B n"]) -> Int[Tensor, "B T"] | Int[Tensor, "x B T"]:
        """Positions of prefix and text, one behind the other; those of the text are given."""
        start = self.advance.cumsum(0) - self.advance
        if self.num_axes == 1:
            return torch.cat([start.expand(len(text), -1), text], dim=1)
        prefix = (start + self.offset)[:, None].expand(-1, len(text), -1)
        return torch.cat([prefix, text.expand(3, -1, -1)], dim=2)

    def advances(self, tokens: Int[Tensor, "B n"], mask: Bool[Tensor, "B n"]) -> Int[Tensor, "B n"]:
        """How far the position moves on behind each token of a text with slots; 0 at padding."""
        place = (-1 - tokens).clamp(min=0)
        return torch.where(tokens < 0, self.advance[place], 1) * mask

    def slot_positions(
        self, tokens: Int[Tensor, "B n"], mask: Bool[Tensor, "B n"]
    ) -> Int[Tensor, "B n"] | Int[Tensor, "x B n"]:
        """Positions of a text with slots."""
        advance = self.advances(tokens, mask)
        start = advance.cumsum(1) - advance
        if self.num_axes == 1:
            return start
        place = (-1 - tokens).clamp(min=0)
        return start + torch.where(tokens < 0, self.offset[:, place], 0)

    def slot_attention(
        self, tokens: Int[Tensor, "B n"], mask: Bool[Tensor, "B n"]
    ) -> Bool[Tensor, "B n n"]:
        """Pairs of tokens of a text with slots that attend to each other in both directions."""
        slots = tokens < 0
        if self.attention == "causal":
            return torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool, device=mask.device)
        if self.attention == "prompt":
            return mask[:, :, None] & mask[:, None]
        picture = self.picture[(-1 - tokens).clamp(min=0)]
        together = slots[:, :, None] & slots[:, None] & (picture[:, :, None] == picture[:, None])
        return together & mask[:, None]
