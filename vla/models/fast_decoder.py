"""Compressed action tokens written behind what a vision-language model has read, one after another.

The language model reads what was written so far; every state is told besides what the queries said
(the plan in it), the integers of the chunk that are there already, and how many are left: a model
that was never taught these tokens says nothing of them. Only tokens that fit into what is left are
offered.

Shapes: `l` tokens written, `T` tokens read, `q` queries, `K` tokens of the code, `L` integers of a
chunk.
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
    """Names the tokens of a code whose `expansions` say which integers each stands for; the first
    ones stand for one each, in their order. The tokens are the last K ids of the vocabulary.
    `begin`, which the language model reads, is trained and frozen with it.
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
                f"policy.num_tokens ({len(expansions)}) exceeds the vocabulary ({model.backbone.vocabulary_size})"
            )
        self.num_symbols, self.first_id = (
            num_symbols,
            model.backbone.vocabulary_size - len(expansions),
        )
        lengths, low = torch.tensor([len(token) for token in expansions]), expansions[0][0]
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
        read: PrefixCache,
        ids: Int[Tensor, "B l"],
        temperature: float,
    ) -> Float[Tensor, "B l K"]:
        """Log-probabilities of every token given the true ones before it."""
        begin = self.begin.to(read.states.dtype).expand(len(ids), 1, -1)
        embedded = torch.cat([begin, model.backbone.embed(ids[:, :-1] + self.first_id)], dim=1)
        hidden = _behind(model, embedded, read, read.frozen_cache(model))
        left = self._left(ids)
        known = (
            torch.arange(self.num_symbols, device=ids.device) < (self.num_symbols - left)[..., None]
        )
        return self._distribution(
            model, hidden, read, self._put(ids, left)[:, None] * known, left, temperature
        )

    def generate(
        self,
        model: VisionLanguageModel,
        read: PrefixCache,
        temperature: float,
        draw: Callable[[Float[Tensor, "B K"]], Int[Tensor, "B"]],
    ) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Token after token by `draw` until every chunk is whole: ids, which are draws, and their
        log-probs."""
        rows, device = len(read.states), read.states.device
        left = torch.full((rows, 1), self.num_symbols, device=device)
        values = torch.zeros(rows, self.num_symbols, device=device)
        ids = torch.zeros(rows, self.num_symbols, dtype=torch.long, device=device)
        there, logprobs = (
            torch.zeros_like(ids, dtype=torch.bool),
            torch.zeros(ids.shape, device=device),
        )
        cache, embedded = read.growing_cache(), self.begin.to(read.states.dtype).expand(rows, 1, -1)
        for at in range(self.num_symbols):
            hidden = _behind(model, embedded, read, cache, at)
            distribution = self._distribution(
                model, hidden, read, values[:, None], left, temperature
            )[:, 0]
            running = left[:, 0] > 0
            ids[:, at] = draw(distribution) * running
            there[:, at] = running
            logprobs[:, at] = distribution.gather(-1, ids[:, at, None])[:, 0] * running
            values = values + self._put(ids[:, at : at + 1], left) * running[:, None]
            left = left - (self.lengths[ids[:, at]] * running)[:, None]
            if not (left > 0).any():
                break
            embedded = model.backbone.embed(ids[:, at] + self.first_id)[:, None]
        return ids, there, logprobs

    def _distribution(
        self,
        model: VisionLanguageModel,
        hidden: Float[Tensor, "B l d"],
        read: PrefixCache,
        values: Float[Tensor, "B l L"],
        left: Int[Tensor, "B l"],
        temperature: float,
    ) -> Float[Tensor, "B l K"]:
        """Log-probabilities of the tokens that fit into what is left, behind the integers `values`
        of a chunk."""
        left = left.clamp(min=1)
        known = (
            torch.arange(self.num_symbols, device=left.device)
            < (self.num_symbols - left)[..., None]
        )
        written = self.written(torch.cat([values, known.to(values.dtype)], dim=-1).to(hidden.dtype))
        states = hidden + written + self.gist(read.states.flatten(1))[:, None] + self.left(left)
        logits = model.backbone.logits(states + self.mixer(states), self.first_id) / temperature
        return logits.masked_fill(self.lengths > left[..., None], -torch.inf).log_softmax(-1)

    def _put(self, ids: Int[Tensor, "B l"], left: Int[Tensor, "B l"]) -> Float[Tensor, "B L"]:
        """The integers of tokens in their places of the chunk, in [-1, 1]; `left` are those before
        each."""
        at = torch.arange(self.integers.shape[1], device=ids.device)
        place = (self.num_symbols - left)[..., None] + at
        place = place.masked_fill(at >= self.lengths[ids][..., None], self.num_symbols).clamp(
            max=self.num_symbols
        )
        empty = torch.zeros(len(ids), self.num_symbols + 1, device=ids.device)
        return empty.scatter(1, place.flatten(1), self.integers[ids].flatten(1))[:, :-1]

    def _left(self, ids: Int[Tensor, "B l"]) -> Int[Tensor, "B l"]:
        """Integers that are left before each token."""
        lengths = self.lengths[ids]
        return self.num_symbols - (lengths.cumsum(1) - lengths)


def _behind(
    model: VisionLanguageModel,
    embedded: Float[Tensor, "B l d"],
    read: PrefixCache,
    cache: Any,
    first: int = 0,
) -> Float[Tensor, "B l d"]:
    """The language model's states of the `first`-th written token and those after it, behind what
    was read."""
    rows, count = embedded.shape[:2]
    at = torch.arange(first, first + count, device=embedded.device)
    own = at[:, None] >= torch.arange(first + count, device=embedded.device)
    attend = torch.cat(
        [read.visible[:, None].expand(-1, count, -1), own.expand(rows, -1, -1)], dim=2
    )
    return model.backbone(embedded, attend, read.visible.sum(1, keepdim=True) + at, cache)
