"""Autoregressive action tokens with a KV cache (`policy.decoding=autoregressive`).

One query starts the sequence `[prefix | text | query, token, token, ...]`; the state at every
position gives the distribution of the next token.

Shapes: as in `token.py`; `P` prefix tokens, `n` text tokens, `l` positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vla.actions.bins import ActionBins
from vla.models.backbone import Backbone, join_tokens
from vla.models.vlm import VisionLanguageModel, attention_mask, text_positions
from vla.policies.action_tokens import (
    add_plan,
    draw_ids,
    make_queries,
    reserve_action_ids,
    restrict_to_valid,
    score_ids,
)
from vla.policies.head import Draws, DrawScores, HeadInput
from vla.policies.traits import Cache
from vla.types import Observation, Trace


@dataclass(frozen=True)
class Prompt:
    """The sequence before the action tokens: prefix embeddings, and text in an observation."""

    prefix: Float[Tensor, "B P W"]
    observation: Observation


class AutoregressiveTokenHead(nn.Module):
    """The language model itself draws action tokens.

    So it cannot be frozen apart from the head, and guidance does not apply; settings refuse both.
    """

    cache: Cache | None = None
    one_prediction = False
    exact = True

    def __init__(
        self, model: VisionLanguageModel, bins: ActionBins, chunk: int, temperature: float
    ):
        super().__init__()
        self.bins = bins
        self.chunk = chunk
        self.temperature = temperature
        self.first_id = reserve_action_ids(model, bins, temperature)
        self.head, self.reader = make_queries(model, 1, bins.num_active)
        self.register_buffer("valid", bins.valid_ids(), persistent=False)

    @property
    def num_draws(self) -> int:
        return self.chunk * self.bins.num_active

    def perceive(
        self,
        model: VisionLanguageModel,
        prefix: Float[Tensor, "B P W"],
        observation: Observation,
        dedup: bool,
    ) -> Float[Tensor, "B P W"]:
        return prefix

    def interpret(
        self,
        model: VisionLanguageModel,
        perceived: Float[Tensor, "B P W"],
        observation: Observation,
    ) -> Prompt:
        return Prompt(perceived, observation)

    def summarize(self, inputs: HeadInput[Prompt]) -> Float[Tensor, "B d"]:
        prefix = inputs.context.prefix
        start = torch.zeros(len(prefix), 1, dtype=torch.long, device=prefix.device)
        return self._teacher_forced(inputs.model, inputs.context, start)[1]

    def score(self, inputs: HeadInput[Prompt], trace: Trace) -> DrawScores:
        distribution, state = self._teacher_forced(inputs.model, inputs.context, trace["ids"])
        return DrawScores(*score_ids(distribution, trace["ids"]), state)

    def imitation_terms(
        self,
        model: VisionLanguageModel,
        perceived: Float[Tensor, "B P W"],
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        trains_model: bool,
    ) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Cross-entropy of every demonstrated action token given the true ones before it."""
        ids = self.bins.encode(actions).flatten(1)
        prompt = Prompt(perceived, observation)
        logprobs, _ = score_ids(self._teacher_forced(model, prompt, ids)[0], ids)
        return -logprobs, action_mask.repeat_interleave(self.bins.num_active, dim=1)

    def perception_parameters(self) -> Iterator[nn.Parameter]:
        yield self.head.queries

    def _teacher_forced(
        self, model: VisionLanguageModel, prompt: Prompt, ids: Int[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L K"], Float[Tensor, "B d"]]:
        """Log-probabilities of every draw given the true ones before it, and the query's state."""
        prefix = prompt.prefix
        observation = prompt.observation
        mask = observation.token_mask
        rows, draws = ids.shape
        # The last token is no input, and the query is one more: inputs and draws are equally many.
        written = model.backbone.embed(ids[:, :-1] + self.first_id)
        start = self.head.queries.to(prefix.dtype).expand(rows, -1, -1)
        embeddings = join_tokens([prefix, model.backbone.embed(observation.tokens), start, written])
        extended = torch.cat(
            [mask, torch.ones(rows, draws, dtype=torch.bool, device=mask.device)], dim=1
        )
        positions = model.layout.positions(text_positions(model.layout.span, extended, None))
        prompted = functional.pad(mask, (0, draws))
        attend = attention_mask(prefix.shape[1], extended, layout=model.layout, prompt=prompted)
        hidden = model.backbone(embeddings, attend, positions)
        hidden = hidden[:, -draws:]
        # Plan and label are added to the query's state; every later state gets the same offset, so
        # that drawing needs them once.
        first = add_plan(self.reader, model, hidden[:, :1], observation)
        states = hidden + (first - hidden[:, :1])
        logits = self._logits(model, states)
        return restrict_to_valid(logits, self.valid, self.temperature), first[:, 0]

    def _logits(
        self, model: VisionLanguageModel, hidden: Float[Tensor, "B l d"], first_draw: int = 0
    ) -> Float[Tensor, "B l K"]:
        """Logits of the draws from number `first_draw` on, from the states at their positions."""
        draws = torch.arange(first_draw, first_draw + hidden.shape[1], device=hidden.device)
        dimensions = self.head.dimensions[draws % self.bins.num_active].expand_as(hidden)
        return model.backbone.logits(self.head.mix(hidden, dimensions), self.first_id)

    def draw(self, inputs: HeadInput[Prompt], greedy: bool) -> Draws:
        """New decisions, token after token with a KV cache."""
        model = inputs.model
        prompt = inputs.context
        backbone = model.backbone
        mask = prompt.observation.token_mask
        prefix = prompt.prefix
        rows = len(mask)
        num_prefix = prefix.shape[1]
        length = mask.shape[1]
        cache = Backbone.new_cache()
        embeddings = join_tokens([prefix, backbone.embed(prompt.observation.tokens)])
        positions = model.layout.positions(text_positions(model.layout.span, mask, None))
        attend = attention_mask(num_prefix, mask, layout=model.layout, prompt=mask)
        backbone(embeddings, attend, positions, cache)
        visible = torch.ones(
            rows, num_prefix + length + self.num_draws, dtype=torch.bool, device=mask.device
        )
        visible[:, num_prefix : num_prefix + length] = mask
        embedded = self.head.queries.to(prefix.dtype).expand(rows, -1, -1)
        # Positions skip padding, as in `_teacher_forced`: both must give the same rotations.
        position = model.layout.span + mask.sum(1, keepdim=True)
        ids = []
        logprobs = []
        offset = None
        for draw in range(self.num_draws):
            visible_now = visible[:, None, : num_prefix + length + draw + 1]
            hidden = backbone(embedded, visible_now, position + draw, cache)
            # Only the first state, the query's, predicts the plan (`_teacher_forced`).
            if offset is None:
                offset = add_plan(self.reader, model, hidden, prompt.observation) - hidden
                first = (hidden + offset)[:, 0]
            valid = self.valid[draw % self.bins.num_active]
            logits = self._logits(model, hidden + offset, draw)[:, 0] / self.temperature
            distribution = logits.masked_fill(~valid, -torch.inf).log_softmax(-1)
            token = draw_ids(distribution, greedy)
            ids.append(token)
            logprobs.append(distribution.gather(-1, token[:, None])[:, 0])
            embedded = backbone.embed(token + self.first_id)[:, None]
        drawn = torch.stack(ids, 1)
        return Draws(
            action=self.bins.decode(drawn.unflatten(1, (self.chunk, -1))),
            trace={"ids": drawn},
            logprobs=torch.stack(logprobs, 1),
            mask=torch.ones_like(drawn, dtype=torch.bool),
            summary=first,
        )
