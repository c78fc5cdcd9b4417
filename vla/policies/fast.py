"""Compressed action tokens (FAST, Pertsch et al. 2025), written one after another with a KV cache.

A draw is a token of the code of `vla.actions.fast`, under the last ids of the vocabulary. Only tokens that fit into
what is left of the chunk can be drawn, so every sequence is a whole chunk and ends by itself; the draws after its end
are padding, which the mask leaves out.

Shapes: `H` control steps a chunk, `A` action dimensions, `L` integers of a chunk (the most draws), `K` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.actions.fast import FastCode
from vla.models.action_expert import Read, read_by, see
from vla.models.heads import ValueHead
from vla.models.readout import Readout
from vla.models.vlm import VisionLanguageModel
from vla.policies.token import draw_ids
from vla.types import Decision, Observation, Scores, Trace


class FastPolicy(nn.Module):
    """A vision-language model that writes compressed actions behind its queries, one a control step, which read the
    plan. Every state is told what the queries said and how much of the chunk is left. After `freeze_prefix` a trace
    carries the prefix.
    """

    can_probe = True

    def __init__(self, model: VisionLanguageModel, code: FastCode, temperature: float, detach_critic: bool):
        super().__init__()
        if code.num_tokens > model.backbone.vocabulary_size:
            raise ValueError(
                f"policy.num_tokens ({code.num_tokens}) exceeds the vocabulary ({model.backbone.vocabulary_size})"
            )
        self.model, self.code, self.temperature, self.chunk = model, code, temperature, code.chunk
        self.cached_prefix = False
        self.first_id = model.backbone.vocabulary_size - code.num_tokens
        model.backbone.order(self.first_id, code.high - code.low + 1)
        self.readout = Readout(model, code.chunk)
        width = model.width
        self.begin = nn.Parameter(torch.randn(1, width) * 0.02)
        self.gist = nn.Linear(code.chunk * width, width)
        self.left = nn.Embedding(code.num_symbols + 1, width)
        nn.init.normal_(self.left.weight, std=0.02)
        self.mixer = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.value_head = ValueHead(width, detach_critic)
        self.register_buffer("lengths", code.lengths(), persistent=False)

    @property
    def num_draws(self) -> int:
        return self.code.num_symbols

    def perceive(self, observation: Observation, trace: Trace | None = None) -> Float[Tensor, "B T D"]:
        """What the language model has seen, its keys and values in it; from the prefix where a trace carries that."""
        kept = trace or {}
        prefix = kept["prefix"] if "prefix" in kept else self.model.prefix(observation)
        return see(self.model, self.readout, prefix, observation)

    def _read(self, seen: Float[Tensor, "B T D"], observation: Observation) -> Read:
        return read_by(self.model, self.readout, seen, observation)

    def _distribution(
        self, hidden: Float[Tensor, "B l d"], gist: Float[Tensor, "B d"], left: Int[Tensor, "B l"]
    ) -> Float[Tensor, "B l K"]:
        """Log-probabilities of the tokens that fit into what is left, at the policy's temperature."""
        left = left.clamp(min=1)
        states = hidden + gist[:, None] + self.left(left)
        logits = self.model.backbone.logits(states + self.mixer(states), self.first_id) / self.temperature
        return logits.masked_fill(self.lengths > left[..., None], -torch.inf).log_softmax(-1)

    def _left(self, ids: Int[Tensor, "B l"]) -> Int[Tensor, "B l"]:
        """Integers that are left before each draw."""
        lengths = self.lengths[ids]
        return self.code.num_symbols - (lengths.cumsum(1) - lengths)

    def _written(
        self, embedded: Float[Tensor, "B l d"], read: Read, cache: Any, first: int = 0
    ) -> Float[Tensor, "B l d"]:
        """The language model's states of written tokens, the `first`-th and those after it, behind what was read."""
        rows, count = embedded.shape[:2]
        at = torch.arange(first, first + count, device=embedded.device)
        own = at[:, None] >= torch.arange(first + count, device=embedded.device)
        seen = read.visible[:, None].expand(-1, count, -1)
        attend = torch.cat([seen, own.expand(rows, -1, -1)], dim=2)
        return self.model.backbone(embedded, attend, read.visible.sum(1, keepdim=True) + at, cache)

    def _teacher_forced(self, read: Read, ids: Int[Tensor, "B l"]) -> Float[Tensor, "B l K"]:
        """Log-probabilities of every draw given the true ones before it."""
        begin = self.begin.to(read.states.dtype).expand(len(ids), 1, -1)
        embedded = torch.cat([begin, self.model.backbone.embed(ids[:, :-1] + self.first_id)], dim=1)
        hidden = self._written(embedded, read, read.behind(self.model))
        return self._distribution(hidden, self.gist(read.states.flatten(1)), self._left(ids))

    def _write(
        self, read: Read, greedy: bool
    ) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Draw token after token until every chunk is whole: ids, which are draws, and their log-probs."""
        rows, device, gist = len(read.states), read.states.device, self.gist(read.states.flatten(1))
        left = torch.full((rows, 1), self.code.num_symbols, device=device)
        ids = torch.zeros(rows, self.code.num_symbols, dtype=torch.long, device=device)
        there, logprobs = torch.zeros_like(ids, dtype=torch.bool), torch.zeros(ids.shape, device=device)
        cache, embedded = read.growing(), self.begin.to(read.states.dtype).expand(rows, 1, -1)
        for draw in range(self.code.num_symbols):
            hidden = self._written(embedded, read, cache, draw)
            distribution = self._distribution(hidden, gist, left)[:, 0]
            running = left[:, 0] > 0
            ids[:, draw] = draw_ids(distribution, greedy) * running
            there[:, draw] = running
            logprobs[:, draw] = distribution.gather(-1, ids[:, draw, None])[:, 0] * running
            left = left - (self.lengths[ids[:, draw]] * running)[:, None]
            if not (left > 0).any():
                break
            embedded = self.model.backbone.embed(ids[:, draw] + self.first_id)[:, None]
        return ids, there, logprobs

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        """Draw a chunk of actions [B, H, A] (physical units) for every row."""
        prefix = self.model.prefix(observation)
        read = self._read(self.perceive(observation, {"prefix": prefix}), observation)
        ids, there, logprobs = self._write(read, greedy)
        return Decision(
            action=self.code.decode(ids, there),
            trace={"ids": ids, "there": there} | ({"prefix": prefix} if self.cached_prefix else {}),
            logprobs=logprobs,
            mask=there,
            values=self.value_head(read.states.mean(1)),
        )

    def score(self, observation: Observation, trace: Trace) -> Scores:
        """Log-probabilities [B, L], entropies [B, L] and values [B] of stored draws under the present weights; 0 where
        nothing was drawn.
        """
        read = self._read(self.perceive(observation, trace), observation)
        return self._scores(read, trace["ids"], trace["there"])

    def _scores(self, read: Read, ids: Int[Tensor, "B L"], there: Bool[Tensor, "B L"]) -> Scores:
        longest = int(there.sum(1).max())
        distribution = self._teacher_forced(read, ids[:, :longest])
        probabilities = distribution.exp()
        entropy = -(probabilities * distribution.masked_fill(probabilities == 0, 0.0)).sum(-1)
        logprobs = distribution.gather(-1, ids[:, :longest, None])[..., 0]
        # Where nothing was drawn an id may be impossible; its -inf must not reach the gradient of the others.
        counted, rest = there[:, :longest], (0, ids.shape[1] - longest)
        logprobs, entropy = (nn.functional.pad(part.masked_fill(~counted, 0.0), rest) for part in (logprobs, entropy))
        return Scores(logprobs, entropy, self.value_head(read.states.mean(1)))

    def imitation_terms(
        self,
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        hidden: Float[Tensor, "B T D"] | None = None,
    ) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Cross-entropy of every token of the demonstrated chunks. A token says something about all control steps, so
        only chunks count whose every action is to be imitated. `hidden` where `perceive` has run.
        """
        ids, there = self.code.encode(actions)
        read = self._read(self.perceive(observation) if hidden is None else hidden, observation)
        return -self._scores(read, ids, there).logprobs, there & action_mask.all(1, keepdim=True)

    @torch.no_grad()
    def value(self, observation: Observation) -> Float[Tensor, "B"]:
        """The critic's estimate of the return from here."""
        return self.value_head(self._read(self.perceive(observation), observation).states.mean(1))

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        return self.value_head.parameters()

    def freeze_prefix(self) -> None:
        """Stop training what the prefix depends on; traces carry the prefix from now on."""
        for parameter in self.model.prefix_parameters():
            parameter.requires_grad_(False)
        self.cached_prefix = True

    def freeze_model(self) -> None:
        """Stop training all but what reads the queries and names the tokens; traces carry the prefix, since keys and
        values would take ten times as much.
        """
        for parameter in self.model_parameters():
            parameter.requires_grad_(False)
        self.cached_prefix = True

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """What `perceive` depends on."""
        yield from self.model.parameters()
        yield self.readout.queries
