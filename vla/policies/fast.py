"""Compressed action tokens (FAST, Pertsch et al. 2025), written one after another with a KV cache.

A draw is a token of the code of `vla.actions.fast`, under the last ids of the vocabulary. Only tokens that fit into
what is left of the chunk can be drawn, so every sequence is a whole chunk and ends by itself; the draws after its end
are padding, which the mask leaves out.

Shapes: `H` control steps a chunk, `A` action dimensions, `L` integers of a chunk (the most draws), `K` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.actions.fast import FastCode
from vla.models.backbone import Backbone
from vla.models.heads import ValueHead
from vla.models.queries import plan_moments
from vla.models.readout import Readout
from vla.models.vlm import VisionLanguageModel, attention_mask, text_positions
from vla.policies.token import draw_ids
from vla.types import Decision, Observation, Scores, Trace


class FastPolicy(nn.Module):
    """A vision-language model that writes compressed actions. After `freeze_prefix` a trace carries the prefix."""

    def __init__(self, model: VisionLanguageModel, code: FastCode, temperature: float, detach_critic: bool):
        super().__init__()
        if code.num_tokens > model.backbone.vocabulary_size:
            raise ValueError(
                f"policy.num_tokens ({code.num_tokens}) exceeds the vocabulary ({model.backbone.vocabulary_size})"
            )
        self.model, self.code, self.temperature, self.chunk = model, code, temperature, code.chunk
        self.cached_prefix = False
        self.first_id = model.backbone.vocabulary_size - code.num_tokens
        self.readout = Readout(model, 1)
        width = model.width
        self.mixer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.value_head = ValueHead(width, detach_critic)
        self.register_buffer("lengths", code.lengths(), persistent=False)

    @property
    def num_draws(self) -> int:
        return self.code.num_symbols

    def _distribution(
        self, hidden: Float[Tensor, "B l d"], thought: Float[Tensor, "B 1 d"], left: Int[Tensor, "B l"]
    ) -> Float[Tensor, "B l K"]:
        """Log-probabilities of the tokens that fit into what is left, at the policy's temperature."""
        states = hidden + thought
        logits = self.model.backbone.logits(states + self.mixer(states), self.first_id) / self.temperature
        fits = self.lengths <= left.clamp(min=1)[..., None]
        return logits.masked_fill(~fits, -torch.inf).log_softmax(-1)

    def _left(self, ids: Int[Tensor, "B l"]) -> Int[Tensor, "B l"]:
        """Integers that are left before each draw."""
        lengths = self.lengths[ids]
        return self.code.num_symbols - (lengths.cumsum(1) - lengths)

    def _thought(self, hidden: Float[Tensor, "B 1 d"], observation: Observation) -> Float[Tensor, "B 1 d"]:
        """What the first state says the instruction comes down to, read into all states."""
        reader = self.readout.reader
        if reader is None:
            return torch.zeros_like(hidden)
        plan = plan_moments(self.model.plan_logits(hidden))
        return reader(plan, self.model.felt(observation), hidden)

    def _start(
        self, prefix: Float[Tensor, "B P d"], observation: Observation
    ) -> tuple[Float[Tensor, "B T d"], Bool[Tensor, "B T"], Int[Tensor, "B T"]]:
        """Embeddings of `[prefix | text]`, what of it is there, and the positions."""
        mask, num_prefix = observation.token_mask, prefix.shape[1]
        seen = torch.arange(num_prefix, device=mask.device).expand(len(mask), -1)
        embeddings = torch.cat([prefix, self.model.backbone.embed(observation.tokens)], dim=1)
        there = torch.cat([torch.ones_like(seen, dtype=torch.bool), mask], dim=1)
        return embeddings, there, torch.cat([seen, text_positions(num_prefix, mask, None)], dim=1)

    def _teacher_forced(
        self, prefix: Float[Tensor, "B P d"], observation: Observation, ids: Int[Tensor, "B l"]
    ) -> tuple[Float[Tensor, "B l K"], Float[Tensor, "B d"]]:
        """Log-probabilities of every draw given the true ones before it, and the critic's input."""
        rows, draws = ids.shape
        embeddings, there, positions = self._start(prefix, observation)
        begin = self.readout.queries.to(prefix.dtype).expand(rows, -1, -1)
        written = self.model.backbone.embed(ids[:, :-1] + self.first_id)
        more = torch.ones(rows, draws, dtype=torch.bool, device=ids.device)
        attend = attention_mask(prefix.shape[1], torch.cat([observation.token_mask, more], dim=1))
        after = there.sum(1, keepdim=True) + torch.arange(draws, device=ids.device)
        hidden = self.model.backbone(
            torch.cat([embeddings, begin, written], dim=1), attend, torch.cat([positions, after], dim=1)
        )[:, -draws:]
        thought = self._thought(hidden[:, :1], observation)
        return self._distribution(hidden, thought, self._left(ids)), (hidden[:, :1] + thought)[:, 0]

    def _write(
        self, prefix: Float[Tensor, "B P d"], observation: Observation, greedy: bool
    ) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"], Float[Tensor, "B L"], Float[Tensor, "B d"]]:
        """Draw token after token until every chunk is whole: ids, which are draws, log-probs, the critic's input."""
        backbone, rows, device = self.model.backbone, len(prefix), prefix.device
        embeddings, visible, positions = self._start(prefix, observation)
        cache = Backbone.new_cache()
        backbone(embeddings, attention_mask(prefix.shape[1], observation.token_mask), positions, cache)
        embedded, position = self.readout.queries.to(prefix.dtype).expand(rows, -1, -1), visible.sum(1, keepdim=True)
        left = torch.full((rows, 1), self.code.num_symbols, device=device)
        ids = torch.zeros(rows, self.code.num_symbols, dtype=torch.long, device=device)
        there, logprobs = torch.zeros_like(ids, dtype=torch.bool), torch.zeros(ids.shape, device=device)
        thought, state = None, None
        for draw in range(self.code.num_symbols):
            visible = torch.cat([visible, torch.ones_like(visible[:, :1])], dim=1)
            hidden = backbone(embedded, visible[:, None], position + draw, cache)
            if thought is None:
                thought = self._thought(hidden, observation)
                state = (hidden + thought)[:, 0]
            distribution = self._distribution(hidden, thought, left)[:, 0]
            running = left[:, 0] > 0
            ids[:, draw] = draw_ids(distribution, greedy) * running
            there[:, draw] = running
            logprobs[:, draw] = distribution.gather(-1, ids[:, draw, None])[:, 0] * running
            left = left - (self.lengths[ids[:, draw]] * running)[:, None]
            if not (left > 0).any():
                break
            embedded = backbone.embed(ids[:, draw] + self.first_id)[:, None]
        assert state is not None
        return ids, there, logprobs, state

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        """Draw a chunk of actions [B, H, A] (physical units) for every row."""
        prefix = self.model.prefix(observation)
        ids, there, logprobs, state = self._write(prefix, observation, greedy)
        return Decision(
            action=self.code.decode(ids, there),
            trace={"ids": ids, "there": there} | ({"prefix": prefix} if self.cached_prefix else {}),
            logprobs=logprobs,
            mask=there,
            values=self.value_head(state),
        )

    def score(self, observation: Observation, trace: Trace) -> Scores:
        """Log-probabilities [B, L], entropies [B, L] and values [B] of stored draws under the present weights; 0 where
        nothing was drawn.
        """
        prefix = trace["prefix"] if self.cached_prefix else self.model.prefix(observation)
        return self._scores(prefix, observation, trace["ids"], trace["there"])

    def _scores(
        self,
        prefix: Float[Tensor, "B P d"],
        observation: Observation,
        ids: Int[Tensor, "B L"],
        there: Bool[Tensor, "B L"],
    ) -> Scores:
        longest = int(there.sum(1).max())
        distribution, state = self._teacher_forced(prefix, observation, ids[:, :longest])
        probabilities = distribution.exp()
        entropy = -(probabilities * distribution.masked_fill(probabilities == 0, 0.0)).sum(-1)
        logprobs = distribution.gather(-1, ids[:, :longest, None])[..., 0]
        # Where nothing was drawn an id may be impossible; its -inf must not reach the gradient of the others.
        counted, rest = there[:, :longest], (0, ids.shape[1] - longest)
        logprobs, entropy = (nn.functional.pad(part.masked_fill(~counted, 0.0), rest) for part in (logprobs, entropy))
        return Scores(logprobs, entropy, self.value_head(state))

    def imitation_terms(
        self, observation: Observation, actions: Float[Tensor, "B H A"], action_mask: Bool[Tensor, "B H"]
    ) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Cross-entropy of every token of the demonstrated chunks. A token says something about all control steps, so
        only chunks count whose every action is to be imitated.
        """
        ids, there = self.code.encode(actions)
        scores = self._scores(self.model.prefix(observation), observation, ids, there)
        return -scores.logprobs, there & action_mask.all(1, keepdim=True)

    @torch.no_grad()
    def value(self, observation: Observation) -> Float[Tensor, "B"]:
        """The critic's estimate of the return from here."""
        start = torch.zeros(len(observation.tokens), 1, dtype=torch.long, device=observation.tokens.device)
        return self.value_head(self._teacher_forced(self.model.prefix(observation), observation, start)[1])

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        return self.value_head.parameters()

    def freeze_prefix(self) -> None:
        """Stop training what the prefix depends on; traces carry the prefix from now on."""
        for parameter in self.model.prefix_parameters():
            parameter.requires_grad_(False)
        self.cached_prefix = True
