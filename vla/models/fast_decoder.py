"""An autoregressive decoder of FAST tokens behind the prefix of a vision-language model.

The language model runs over the tokens written so far. Each of its states gets three additions: the
states of the queries (the plan is in them), the integers of the chunk written so far, and the
number of integers left. Without these a model that was never trained on the tokens has no use for
them. Only tokens that fit into the rest of the chunk have a probability.

Shapes: `B` rows, `l` tokens written, `T` tokens of the prefix, `q` queries, `K` tokens of the code,
`L` integers of a chunk, `d` width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.models.action_expert import PrefixCache
from vla.models.vlm import VisionLanguageModel


class FastDecoder(nn.Module):
    """Distributions of the tokens of a code; the tokens are the last K ids of the vocabulary.

    `expansions` holds the integers of each token; the first tokens are single integers in order.
    `begin` is the embedding before the first token; it trains and freezes with the language model.

    Raises:
        ValueError: the code has more tokens than the vocabulary.
    """

    lengths: Tensor
    integers: Tensor

    def __init__(
        self,
        model: VisionLanguageModel,
        num_queries: int,
        expansions: Sequence[Sequence[int]],
        num_symbols: int,
    ):
        super().__init__()
        if len(expansions) > model.backbone.vocabulary_size:
            raise ValueError(
                f"policy.num_tokens ({len(expansions)}) exceeds the vocabulary "
                f"({model.backbone.vocabulary_size}): lower policy.num_tokens"
            )
        self.num_symbols = num_symbols
        self.first_id = model.backbone.vocabulary_size - len(expansions)
        lengths = torch.tensor([len(token) for token in expansions])
        low = expansions[0][0]
        num_integers = int((lengths == 1).sum())
        model.backbone.order_embeddings(self.first_id, num_integers)
        parts = [[value - low for value in token] for token in expansions[num_integers:]]
        model.backbone.compose_embeddings(self.first_id, num_integers, parts)
        width = model.width
        self.begin = nn.Parameter(torch.randn(1, width) * 0.02)
        self.gist = nn.Linear(num_queries * width, width)
        self.written = nn.Linear(2 * num_symbols, width)
        self.left = nn.Embedding(num_symbols + 1, width)
        nn.init.normal_(self.left.weight, std=0.02)
        self.mixer = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        padded = [[*token, *[0] * (int(lengths.max()) - len(token))] for token in expansions]
        largest = max(1, *(abs(value) for token in expansions[:num_integers] for value in token))
        self.register_buffer("lengths", lengths, persistent=False)
        self.register_buffer("integers", torch.tensor(padded) / largest, persistent=False)

    def teacher_forced_logprobs(
        self,
        model: VisionLanguageModel,
        prefix: PrefixCache,
        ids: Int[Tensor, "B l"],
        temperature: float,
    ) -> Float[Tensor, "B l K"]:
        """Log-probabilities of every token given the true ones before it, in one pass."""
        begin = self.begin.to(prefix.states.dtype).expand(len(ids), 1, -1)
        embedded = torch.cat([begin, model.backbone.embed(ids[:, :-1] + self.first_id)], dim=1)
        hidden = _behind(model, embedded, prefix, prefix.frozen_cache(model))
        left = self._left(ids)
        # All integers of the chunk are at hand; each position may use those before it only.
        written = (
            torch.arange(self.num_symbols, device=ids.device) < (self.num_symbols - left)[..., None]
        )
        return self._distribution(
            model, hidden, prefix, self._put(ids, left)[:, None] * written, left, temperature
        )

    def generate(
        self,
        model: VisionLanguageModel,
        prefix: PrefixCache,
        temperature: float,
        draw: Callable[[Float[Tensor, "B K"]], Int[Tensor, "B"]],
    ) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Draw token after token until every chunk is complete.

        `draw` picks ids from log-probabilities. Returns ids, a mask of the draws, and their
        log-probabilities.
        """
        rows = len(prefix.states)
        device = prefix.states.device
        left = torch.full((rows, 1), self.num_symbols, device=device)
        values = torch.zeros(rows, self.num_symbols, device=device)
        ids = torch.zeros(rows, self.num_symbols, dtype=torch.long, device=device)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        logprobs = torch.zeros(ids.shape, device=device)
        cache = prefix.growing_cache()
        embedded = self.begin.to(prefix.states.dtype).expand(rows, 1, -1)
        for at in range(self.num_symbols):
            hidden = _behind(model, embedded, prefix, cache, at)
            distribution = self._distribution(
                model, hidden, prefix, values[:, None], left, temperature
            )[:, 0]
            # Rows end at different lengths; a finished row gets padding until all are done.
            running = left[:, 0] > 0
            ids[:, at] = draw(distribution) * running
            mask[:, at] = running
            logprobs[:, at] = distribution.gather(-1, ids[:, at, None])[:, 0] * running
            values = values + self._put(ids[:, at : at + 1], left) * running[:, None]
            left = left - (self.lengths[ids[:, at]] * running)[:, None]
            if not (left > 0).any():
                break
            embedded = model.backbone.embed(ids[:, at] + self.first_id)[:, None]
        return ids, mask, logprobs

    def _distribution(
        self,
        model: VisionLanguageModel,
        hidden: Float[Tensor, "B l d"],
        prefix: PrefixCache,
        values: Float[Tensor, "B l L"],
        left: Int[Tensor, "B l"],
        temperature: float,
    ) -> Float[Tensor, "B l K"]:
        """Log-probabilities of the tokens that fit into the rest of the chunk.

        `values` are the integers written so far, 0 elsewhere.
        """
        # A finished row has nothing left, and a distribution over no tokens would be NaN.
        left = left.clamp(min=1)
        is_written = (
            torch.arange(self.num_symbols, device=left.device)
            < (self.num_symbols - left)[..., None]
        )
        written = self.written(
            torch.cat([values, is_written.to(values.dtype)], dim=-1).to(hidden.dtype)
        )
        states = hidden + written + self.gist(prefix.states.flatten(1))[:, None] + self.left(left)
        logits = model.backbone.logits(states + self.mixer(states), self.first_id) / temperature
        return logits.masked_fill(self.lengths > left[..., None], -torch.inf).log_softmax(-1)

    def _put(self, ids: Int[Tensor, "B l"], left: Int[Tensor, "B l"]) -> Float[Tensor, "B L"]:
        """The integers of tokens at their places in the chunk, in [-1, 1]; `left` counts the
        integers left before each token."""
        at = torch.arange(self.integers.shape[1], device=ids.device)
        place = (self.num_symbols - left)[..., None] + at
        place = place.masked_fill(at >= self.lengths[ids][..., None], self.num_symbols).clamp(
            max=self.num_symbols
        )
        # The extra column takes the padding of short tokens, and is cut off.
        empty = torch.zeros(len(ids), self.num_symbols + 1, device=ids.device)
        return empty.scatter(1, place.flatten(1), self.integers[ids].flatten(1))[:, :-1]

    def _left(self, ids: Int[Tensor, "B l"]) -> Int[Tensor, "B l"]:
        """Integers left before each token."""
        lengths = self.lengths[ids]
        return self.num_symbols - (lengths.cumsum(1) - lengths)


def _behind(
    model: VisionLanguageModel,
    embedded: Float[Tensor, "B l d"],
    prefix: PrefixCache,
    cache: Any,
    first: int = 0,
) -> Float[Tensor, "B l d"]:
    """The language model's states of written tokens, from number `first` on."""
    rows, count = embedded.shape[:2]
    at = torch.arange(first, first + count, device=embedded.device)
    own = at[:, None] >= torch.arange(first + count, device=embedded.device)
    attend = torch.cat(
        [prefix.visible[:, None].expand(-1, count, -1), own.expand(rows, -1, -1)], dim=2
    )
    return model.backbone(embedded, attend, prefix.end + at, cache)
