"""Compressed action tokens (FAST, Pertsch et al. 2025), written one after another with a KV cache.

A draw is a token of the code of `vla.actions.fast`, under the last ids of the vocabulary. Only
tokens that fit into what is left of the chunk can be drawn, so every sequence is a whole chunk and
ends by itself; the draws after its end are padding, which the mask leaves out.

Shapes: `H` control steps a chunk, `A` action dimensions, `L` integers of a chunk (the most draws),
`K` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.actions.fast import FastCode
from vla.models.action_expert import Read, read_by, see, see_once
from vla.models.heads import ValueHead
from vla.models.readout import Readout
from vla.models.token_writer import TokenWriter
from vla.models.vlm import VisionLanguageModel
from vla.policies.token import draw_ids
from vla.types import Decision, Observation, Scores, Trace, map_rows


class FastPolicy(nn.Module):
    """A vision-language model that writes compressed actions behind its queries, one a control
    step, which read the plan. Every state is told what the queries said and how much of the chunk
    is left. After `freeze_prefix` a trace carries the prefix.
    """

    can_probe = True

    def __init__(
        self, model: VisionLanguageModel, code: FastCode, temperature: float, detach_critic: bool
    ):
        super().__init__()
        self.model, self.code, self.temperature, self.chunk = model, code, temperature, code.chunk
        self.cached_prefix = False
        self.readout = Readout(model, code.chunk)
        self.writer = writer_of(model, code)
        self.value_head = ValueHead(model.width, detach_critic)

    @property
    def num_draws(self) -> int:
        return self.code.num_symbols

    def perceive(
        self, observation: Observation, trace: Trace | None = None
    ) -> Float[Tensor, "B T D"]:
        """What the language model has seen, its keys and values in it; from the prefix where a
        trace carries that."""
        if trace is not None and "prefix" in trace:
            return see_once(self.model, self.readout, trace["prefix"], observation)
        return see(self.model, self.readout, self.model.prefix(observation), observation)

    def _read(self, seen: Float[Tensor, "B T D"], observation: Observation) -> Read:
        return read_by(self.model, self.readout, seen, observation)

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        """Draw a chunk of actions [B, H, A] (physical units) for every row."""
        prefix = self.model.prefix(observation)
        read = self._read(self.perceive(observation, {"prefix": prefix}), observation)
        return self._decided(read, greedy, {"prefix": prefix} if self.cached_prefix else {})

    def _decided(self, read: Read, greedy: bool, kept: Trace) -> Decision:
        draw = partial(draw_ids, greedy=greedy)
        ids, there, logprobs = self.writer.write(self.model, read, self.temperature, draw)
        return Decision(
            action=self.code.decode(ids, there),
            trace={"ids": ids, "there": there} | dict(kept),
            logprobs=logprobs,
            mask=there,
            values=self.value_head(read.states.mean(1)),
        )

    @property
    def can_redraw(self) -> bool:
        return self.cached_prefix

    @torch.no_grad()
    def redraw(self, observation: Observation, trace: Trace, count: int) -> Decision:
        """`count` more decisions for every row, from the prefix in its trace; those of a row stand
        together."""
        found = (self.perceive(observation, trace), trace["prefix"])
        seen, prefix = (part.repeat_interleave(count, 0) for part in found)
        again = map_rows(observation, lambda tensor: tensor.repeat_interleave(count, 0))
        return self._decided(self._read(seen, again), False, {"prefix": prefix})

    def score(self, observation: Observation, trace: Trace) -> Scores:
        """Log-probabilities [B, L], entropies [B, L] and values [B] of stored draws under the
        present weights; 0 where nothing was drawn.
        """
        read = self._read(self.perceive(observation, trace), observation)
        return self._scores(read, trace["ids"], trace["there"])

    def _scores(self, read: Read, ids: Int[Tensor, "B L"], there: Bool[Tensor, "B L"]) -> Scores:
        logprobs, entropy = written_scores(
            self.writer, self.model, read, ids, there, self.temperature
        )
        return Scores(logprobs, entropy, self.value_head(read.states.mean(1)))

    def imitation_terms(
        self,
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        hidden: Float[Tensor, "B T D"] | None = None,
    ) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Cross-entropy of every token of the demonstrated chunks. A token says something about all
        control steps, so only chunks count whose every action is to be imitated. `hidden` where
        `perceive` has run.
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
        """Stop training all but what reads the queries and names the tokens; traces carry the
        prefix, since keys and values would take ten times as much.
        """
        for parameter in self.model_parameters():
            parameter.requires_grad_(False)
        self.cached_prefix = True

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """What `perceive` depends on, and what the language model reads of what is written."""
        yield from self.model.parameters()
        yield self.readout.queries
        yield self.writer.begin


def writer_of(model: VisionLanguageModel, code: FastCode) -> TokenWriter:
    """What writes the tokens of `code`."""
    return TokenWriter(model, code.chunk, code.expansions, code.num_symbols)


def written_scores(
    writer: TokenWriter,
    model: VisionLanguageModel,
    read: Read,
    ids: Int[Tensor, "B L"],
    there: Bool[Tensor, "B L"],
    temperature: float,
) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Log-probabilities and entropies of written tokens, 0 where there is none."""
    longest = int(there.sum(1).max())
    distribution = writer.teacher_forced(model, read, ids[:, :longest], temperature)
    probabilities = distribution.exp()
    entropy = -(probabilities * distribution.masked_fill(probabilities == 0, 0.0)).sum(-1)
    logprobs = distribution.gather(-1, ids[:, :longest, None])[..., 0]
    # Where nothing was drawn an id may be impossible; its -inf must not reach the gradient of the
    # others.
    counted, rest = there[:, :longest], (0, ids.shape[1] - longest)
    logprobs, entropy = (
        nn.functional.pad(part.masked_fill(~counted, 0.0), rest) for part in (logprobs, entropy)
    )
    return logprobs, entropy
