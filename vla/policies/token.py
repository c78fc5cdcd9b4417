"""The RT-2 kind of policy: actions are tokens of the language model's own vocabulary, the last ids
of it.

`decoding="parallel"` asks one query a control step and gets all its action tokens in one pass
(OpenVLA-OFT); `"autoregressive"` writes token after token with a KV cache. Only ids that mean
something for a dimension can be drawn, at the policy's temperature, and the same restriction and
temperature are used when a trace is scored.

Shapes: `H` control steps a chunk, `A` action dimensions, `a` of them active, `L = H a` draws, `K`
ids a dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.actions.bins import ActionBins
from vla.data.labels import without_label
from vla.finite import check_distribution
from vla.models.backbone import Backbone
from vla.models.heads import ValueHead
from vla.models.queries import PlanReader, QueryHead, plan_moments
from vla.models.vlm import VisionLanguageModel, attention_mask, text_positions
from vla.types import Decision, Observation, Scores, Trace, map_rows


class TokenPolicy(nn.Module):
    """A vision-language model that acts in tokens. What is frozen is computed once: a trace carries
    it (`cached`). With `guidance` other than 1, the logits of parallel decoding go that many times
    as far as the instruction's label leads.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        bins: ActionBins,
        chunk: int,
        decoding: Literal["parallel", "autoregressive"],
        temperature: float,
        detach_critic: bool,
        cached: Literal["nothing", "prefix", "queries"] = "nothing",
    ):
        super().__init__()
        if bins.num_bins > model.backbone.vocabulary_size:
            raise ValueError(
                f"policy.num_bins ({bins.num_bins}) exceeds the vocabulary ({model.backbone.vocabulary_size})"
            )
        if temperature <= 0:
            raise ValueError(
                f"policy.temperature ({temperature}) must be positive; greedy decoding is asked for at evaluation"
            )
        self.model, self.bins, self.chunk = model, bins, chunk
        self.decoding, self.temperature, self.cached = decoding, temperature, cached
        self.guidance = 1.0
        self.first_id = model.backbone.vocabulary_size - bins.num_bins
        model.backbone.order(self.first_id, bins.num_bins)
        num_queries = chunk if decoding == "parallel" else 1
        self.head = QueryHead(num_queries, bins.num_active, model.width)
        self.reader = None
        if model.plan is not None:
            self.head.start_from(model.plan)
            numbers, felt = len(model.plan.dimensions), len(model.proprio_mean)
            self.reader = PlanReader(numbers, felt, num_queries, model.width)
        self.value_head = ValueHead(model.width, detach_critic)
        self.register_buffer("valid", bins.valid(), persistent=False)

    @property
    def num_draws(self) -> int:
        return self.chunk * self.bins.num_active

    def prefix(self, observation: Observation) -> Float[Tensor, "B P d"]:
        return self.model.prefix(observation)

    def _scaled(self, logits: Float[Tensor, "B L K"]) -> Float[Tensor, "B L K"]:
        """Log-probabilities over the ids that mean something, at the policy's temperature."""
        dimension = torch.arange(logits.shape[1], device=logits.device) % self.bins.num_active
        return (
            (logits / self.temperature)
            .masked_fill(~self.valid[dimension], -torch.inf)
            .log_softmax(-1)
        )

    def _planned(
        self, hidden: Float[Tensor, "B q d"], observation: Observation
    ) -> Float[Tensor, "B q d"]:
        """The states of the queries, and in them what they say the instruction comes down to."""
        told = self.model.told(hidden, observation)
        if self.reader is None:
            return told
        plan = plan_moments(self.model.plan_logits(hidden))
        return hidden + self.reader(plan, self.model.felt(observation), told)

    def perceive(
        self, observation: Observation, trace: Trace | None = None
    ) -> Float[Tensor, "B q d"]:
        """What the queries of parallel decoding have seen; from the trace, where that carries what
        is frozen."""
        kept = trace or {}
        if "hidden" in kept:
            return kept["hidden"]
        prefix = kept["prefix"] if "prefix" in kept else self.prefix(observation)
        return self.model.read(prefix, observation, self.head.queries)

    def _decide(
        self, hidden: Float[Tensor, "B q d"], observation: Observation
    ) -> tuple[Float[Tensor, "B L K"], Float[Tensor, "B d"]]:
        """Log-probabilities of all draws and the critic's input, from one pass; as learned, without
        guidance."""
        logits, states = self._logits(hidden, observation)
        return self._scaled(logits), states.mean(1)

    def _guided(
        self, hidden: Float[Tensor, "B q d"], observation: Observation
    ) -> tuple[Float[Tensor, "B L K"], Float[Tensor, "B d"]]:
        """The same to act and to score with; what the queries have seen is the same with a label
        and without."""
        logits, states = self._logits(hidden, observation)
        if self.guidance != 1:
            plain, _ = self._logits(hidden, without_label(observation))
            logits = plain + self.guidance * (logits - plain)
        return self._scaled(logits), states.mean(1)

    def _logits(
        self, hidden: Float[Tensor, "B q d"], observation: Observation
    ) -> tuple[Float[Tensor, "B L K"], Float[Tensor, "B q d"]]:
        states = self._planned(hidden, observation)
        return self.model.backbone.logits(self.head(states).flatten(1, 2), self.first_id), states

    def _teacher_forced(
        self, prefix: Float[Tensor, "B P d"], observation: Observation, ids: Int[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L K"], Float[Tensor, "B d"]]:
        """Log-probabilities of every draw given the true ones before it."""
        mask, (rows, draws) = observation.token_mask, ids.shape
        written = self.model.backbone.embed(ids[:, :-1] + self.first_id)
        start = self.head.queries.to(prefix.dtype).expand(rows, -1, -1)
        embeddings = torch.cat(
            [prefix, self.model.backbone.embed(observation.tokens), start, written], dim=1
        )
        extended = torch.cat(
            [mask, torch.ones(rows, draws, dtype=torch.bool, device=mask.device)], dim=1
        )
        seen = torch.arange(prefix.shape[1], device=mask.device).expand(rows, -1)
        positions = torch.cat([seen, text_positions(prefix.shape[1], extended, None)], dim=1)
        hidden = self.model.backbone(
            embeddings, attention_mask(prefix.shape[1], extended), positions
        )
        hidden = hidden[:, -draws:]
        first = self._planned(hidden[:, :1], observation)
        states = hidden + (first - hidden[:, :1])
        return self._scaled(self._autoregressive_logits(states)), first[:, 0]

    def _autoregressive_logits(
        self, hidden: Float[Tensor, "B l d"], first_draw: int = 0
    ) -> Float[Tensor, "B l K"]:
        which = (
            torch.arange(first_draw, first_draw + hidden.shape[1], device=hidden.device)
            % self.bins.num_active
        )
        states = self.head.mix(hidden, self.head.dimensions[which].expand_as(hidden))
        return self.model.backbone.logits(states, self.first_id)

    def _write(
        self, prefix: Float[Tensor, "B P d"], observation: Observation, greedy: bool
    ) -> tuple[Int[Tensor, "B L"], Float[Tensor, "B L"], Float[Tensor, "B d"]]:
        """Draw token after token, every earlier key and value kept in a cache."""
        backbone, mask = self.model.backbone, observation.token_mask
        rows, num_prefix, length = len(mask), prefix.shape[1], mask.shape[1]
        cache = Backbone.new_cache()
        embeddings = torch.cat([prefix, backbone.embed(observation.tokens)], dim=1)
        seen = torch.arange(num_prefix, device=mask.device).expand(rows, -1)
        positions = torch.cat([seen, text_positions(num_prefix, mask, None)], dim=1)
        backbone(embeddings, attention_mask(num_prefix, mask), positions, cache)
        visible = torch.ones(
            rows, num_prefix + length + self.num_draws, dtype=torch.bool, device=mask.device
        )
        visible[:, num_prefix : num_prefix + length] = mask
        embedded, position = (
            self.head.queries.to(prefix.dtype).expand(rows, -1, -1),
            num_prefix + mask.sum(1, keepdim=True),
        )
        ids, logprobs, thought = [], [], None
        for draw in range(self.num_draws):
            seen_now = visible[:, None, : num_prefix + length + draw + 1]
            hidden = backbone(embedded, seen_now, position + draw, cache)
            if thought is None:
                thought = self._planned(hidden, observation) - hidden
                first = (hidden + thought)[:, 0]
            valid = self.valid[draw % self.bins.num_active]
            logits = self._autoregressive_logits(hidden + thought, draw)[:, 0] / self.temperature
            distribution = logits.masked_fill(~valid, -torch.inf).log_softmax(-1)
            token = draw_ids(distribution, greedy)
            ids.append(token)
            logprobs.append(distribution.gather(-1, token[:, None])[:, 0])
            embedded = backbone.embed(token + self.first_id)[:, None]
        return torch.stack(ids, 1), torch.stack(logprobs, 1), first

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        """Draw a chunk of actions [B, H, A] (physical units) for every row."""
        prefix = self.prefix(observation)
        kept = {"prefix": prefix} if self.cached == "prefix" else {}
        if self.decoding == "parallel":
            hidden = self.perceive(observation, {"prefix": prefix})
            distribution, state = self._guided(hidden, observation)
            ids = draw_ids(distribution, greedy)
            logprobs = distribution.gather(-1, ids[..., None])[..., 0]
            kept = {"hidden": hidden} if self.cached == "queries" else kept
        else:
            ids, logprobs, state = self._write(prefix, observation, greedy)
        return Decision(
            action=self.bins.decode(ids.unflatten(1, (self.chunk, -1))),
            trace={"ids": ids} | kept,
            logprobs=logprobs,
            mask=torch.ones_like(ids, dtype=torch.bool),
            values=self.value_head(state),
        )

    @property
    def can_redraw(self) -> bool:
        return self.cached == "queries"

    @torch.no_grad()
    def redraw(self, observation: Observation, trace: Trace, count: int) -> Decision:
        """`count` more decisions for every row, from what its trace has perceived; those of a row
        stand together."""
        found, state = self._guided(trace["hidden"], observation)
        distribution = found.repeat_interleave(count, 0)
        ids = draw_ids(distribution, greedy=False)
        return Decision(
            action=self.bins.decode(ids.unflatten(1, (self.chunk, -1))),
            trace={"ids": ids, "hidden": trace["hidden"].repeat_interleave(count, 0)},
            logprobs=distribution.gather(-1, ids[..., None])[..., 0],
            mask=torch.ones_like(ids, dtype=torch.bool),
            values=self.value_head(state).repeat_interleave(count, 0),
        )

    @torch.no_grad()
    def value(self, observation: Observation) -> Float[Tensor, "B"]:
        """The critic's estimate of the return from here."""
        if self.decoding == "parallel":
            return self.value_head(self._decide(self.perceive(observation), observation)[1])
        prefix = self.prefix(observation)
        start = torch.zeros(len(prefix), 1, dtype=torch.long, device=prefix.device)
        return self.value_head(self._teacher_forced(prefix, observation, start)[1])

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        return self.value_head.parameters()

    def freeze_prefix(self) -> None:
        """Stop training what the prefix depends on; traces carry the prefix from now on, so that it
        is computed once.
        """
        for parameter in self.model.prefix_parameters():
            parameter.requires_grad_(False)
        self.cached = "prefix"

    def freeze_model(self) -> None:
        """Stop training all but the head; traces carry what the queries have seen, so that the
        vision-language model is run once a decision and an update costs next to nothing.

        Raises ValueError for autoregressive decoding, where every token goes through the model.
        """
        if self.decoding != "parallel":
            raise ValueError(
                f"policy.decoding={self.decoding} runs the language model for every token, so it cannot be frozen "
                "apart from the head: choose policy.decoding=parallel, or model.freeze_in_rl=prefix"
            )
        for parameter in self.model_parameters():
            parameter.requires_grad_(False)
        self.cached = "queries"

    def score(self, observation: Observation, trace: Trace) -> Scores:
        """Log-probabilities [B, L], entropies [B, L] and values [B] of stored draws under the
        present weights."""
        if self.decoding == "parallel":
            hidden = self.perceive(observation, trace)
            first, number = distinct(hidden, observation)
            seen = map_rows(replace(observation, images={}), lambda tensor: tensor[first])
            return self._scores(self._guided(hidden[first], seen), trace["ids"], number)
        prefix = trace["prefix"] if "prefix" in trace else self.prefix(observation)
        return self._scores(self._teacher_forced(prefix, observation, trace["ids"]), trace["ids"])

    def imitate(
        self,
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        hidden: Float[Tensor, "B q d"] | None = None,
    ) -> Float[Tensor, "B L"]:
        """Log-probabilities of demonstrated actions, for supervised training; `hidden` where
        `perceive` has run."""
        ids = self.bins.encode(actions).flatten(1)
        if self.decoding == "parallel":
            seen = self.perceive(observation) if hidden is None else hidden
            return self._scores(self._decide(seen, observation), ids).logprobs
        return self.score(observation, {"ids": ids}).logprobs

    def imitation_terms(
        self,
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        hidden: Float[Tensor, "B q d"] | None = None,
    ) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Cross-entropy of every demonstrated action token, and which of them count."""
        return -self.imitate(observation, actions, hidden), self.draw_mask(action_mask)

    @property
    def can_probe(self) -> bool:
        return self.decoding == "parallel"

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """What `perceive` depends on: all but the head."""
        yield from self.model.parameters()
        yield self.head.queries

    def _scores(
        self,
        decided: tuple[Float[Tensor, "S L K"], Float[Tensor, "S d"]],
        ids: Int[Tensor, "B L"],
        number: Int[Tensor, "B"] | None = None,
    ) -> Scores:
        """Scores of draws `ids`; `number` says which of the rows of `decided` each was drawn from,
        None: its own."""
        distribution, state = decided
        number = torch.arange(len(ids), device=ids.device) if number is None else number
        probabilities = distribution.exp()
        entropy = -(probabilities * distribution.masked_fill(probabilities == 0, 0.0)).sum(-1)
        chosen = distribution[number[:, None], torch.arange(ids.shape[1], device=ids.device), ids]
        return Scores(chosen, entropy[number], self.value_head(state)[number])

    def draw_mask(self, action_mask: Bool[Tensor, "B H"]) -> Bool[Tensor, "B L"]:
        """Spread a mask over control steps onto the draws that decide them."""
        return action_mask.repeat_interleave(self.bins.num_active, dim=1)


def distinct(
    hidden: Float[Tensor, "B q d"], observation: Observation
) -> tuple[Int[Tensor, "S"], Int[Tensor, "B"]]:
    """Several draws from one state stand together and are equal in all but the draw: the first row
    of each state, and which state every row is from. What was just computed with a gradient is
    taken as it is.
    """
    rows = torch.arange(len(hidden), device=hidden.device)
    if hidden.requires_grad or len(hidden) < 2:
        return rows, rows
    parts = [
        t for t in (hidden.flatten(1), observation.proprio, observation.tokens) if t is not None
    ]
    new = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    new[1:] = torch.stack([(part[1:] != part[:-1]).any(1) for part in parts]).any(0)
    return rows[new], new.long().cumsum(0) - 1


def draw_ids(distribution: Float[Tensor, "*rows K"], greedy: bool) -> Int[Tensor, "*rows"]:
    """Draw from log-probabilities by inverting the cumulative distribution (15x faster than
    torch.multinomial on a CPU). Raises FloatingPointError where they are NaN.
    """
    check_distribution(distribution)
    if greedy:
        return distribution.argmax(-1)
    cumulative = distribution.exp().cumsum(-1)
    uniform = torch.rand(
        *cumulative.shape[:-1], 1, device=cumulative.device, dtype=cumulative.dtype
    )
    # Rounding must not lift the threshold to the total: the ids above it have probability zero.
    threshold = uniform * cumulative[..., -1:] * (1 - 1e-6)
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
