"""Compressed action tokens (FAST, Pertsch et al. 2025), decoded autoregressively with a KV cache.

A draw is a token of the code of `vla.actions.fast`, one of the last ids of the vocabulary. Only
tokens that fit into the rest of the chunk have a probability, so every sequence is a complete
chunk. Draws after its end are padding, which the mask leaves out.

Shapes: `B` decisions, `H` control steps a chunk, `A` action dimensions, `L` integers of a chunk
(the most draws), `K` tokens, `P` prefix tokens, `T` tokens and `D` numbers of a packed prefix
cache, `d` width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.actions.action_statistics import describe_widened_scales
from vla.actions.fast import FastCode, fit_fast, max_normalized_value
from vla.models.action_expert import (
    PrefixCache,
    build_prefix_cache,
    unpack_prefix_cache,
)
from vla.models.fast_decoder import FastDecoder
from vla.models.plan_head import ActionReadout
from vla.models.vlm import VisionLanguageModel
from vla.policies.action_tokens import draw_ids
from vla.policies.head import Draws, DrawScores, HeadInput
from vla.policies.traits import Cache
from vla.ranges import ActionTokens, InstructionLength, Positive, SmallCount, Temperature
from vla.types import Observation, Trace


@dataclass(frozen=True)
class FastSettings:
    """Settings of `policy=fast`."""

    cache: ClassVar[Cache | None] = "prefix"
    can_guide: ClassVar[bool] = False  # two partial sequences cannot be combined
    unused: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    chunk: SmallCount
    instruction_length: InstructionLength
    num_tokens: ActionTokens
    scale: Positive
    temperature: Temperature

    def fit_code(self, chunks: np.ndarray) -> FastCode:
        return fit_fast(chunks, self.num_tokens, self.scale)

    def read_code(self, values: Mapping[str, Any]) -> FastCode:
        return FastCode.from_dict(dict(values))

    def code_notes(self, code: Any, frames: np.ndarray, names: Sequence[str]) -> list[str]:
        farthest = max_normalized_value(self.num_tokens, code.scale, code.chunk)
        return describe_widened_scales(frames, names, farthest)

    def make_head(self, model: VisionLanguageModel, code: FastCode) -> FastHead:
        return FastHead(model, code, self.temperature)


class FastHead(nn.Module):
    """Autoregressive tokens behind one query a control step; the context is the prefix cache.

    `writer` is the decoder of the tokens (`FastDecoder`).
    """

    cache: Cache | None = "prefix"  # keys and values would take ten times as much
    one_prediction = False
    exact = True

    def __init__(self, model: VisionLanguageModel, code: FastCode, temperature: float):
        super().__init__()
        self.code = code
        self.temperature = temperature
        self.chunk = code.chunk
        self.readout = ActionReadout(model, code.chunk)
        self.writer = make_fast_decoder(model, code)

    @property
    def num_draws(self) -> int:
        return self.code.num_symbols

    def perceive(
        self,
        model: VisionLanguageModel,
        prefix: Float[Tensor, "B P W"],
        observation: Observation,
        dedup: bool,
    ) -> Float[Tensor, "B T D"]:
        """The packed prefix cache: states of the queries, keys and values of all layers."""
        return build_prefix_cache(model, self.readout, prefix, observation, dedup=dedup)

    def interpret(
        self,
        model: VisionLanguageModel,
        perceived: Float[Tensor, "B T D"],
        observation: Observation,
    ) -> PrefixCache:
        return unpack_prefix_cache(model, self.readout, perceived, observation)

    def summarize(self, inputs: HeadInput[PrefixCache]) -> Float[Tensor, "B d"]:
        return inputs.context.states.mean(1)

    def draw(self, inputs: HeadInput[PrefixCache], greedy: bool) -> Draws:
        draw = partial(draw_ids, greedy=greedy)
        ids, mask, logprobs = self.writer.generate(
            inputs.model, inputs.context, self.temperature, draw
        )
        return Draws(
            action=self.code.decode(ids, mask),
            trace={"ids": ids, "there": mask},
            logprobs=logprobs,
            mask=mask,
            summary=self.summarize(inputs),
        )

    def score(self, inputs: HeadInput[PrefixCache], trace: Trace) -> DrawScores:
        """Log-probabilities and entropies of stored draws, 0 where nothing was drawn."""
        logprobs, entropy = score_tokens(
            self.writer,
            inputs.model,
            inputs.context,
            trace["ids"],
            trace["there"],
            self.temperature,
        )
        return DrawScores(logprobs, entropy, self.summarize(inputs))

    def imitation_terms(
        self,
        model: VisionLanguageModel,
        perceived: Float[Tensor, "B T D"],
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        trains_model: bool,
    ) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Cross-entropy of every token of the demonstrated chunks.

        A token encodes all control steps, so a chunk counts only if all its actions do.
        """
        ids, mask = self.code.encode(actions)
        prefix = self.interpret(model, perceived, observation)
        logprobs, _ = score_tokens(self.writer, model, prefix, ids, mask, self.temperature)
        return -logprobs, mask & action_mask.all(1, keepdim=True)

    def count_terms(
        self, actions: Float[Tensor, "B H A"], action_mask: Bool[Tensor, "B H"]
    ) -> Int[Tensor, "B"]:
        """Number of tokens of each chunk that counts."""
        _, mask = self.code.encode(actions)
        return (mask & action_mask.all(1, keepdim=True)).sum(1)

    def perception_parameters(self) -> Iterator[nn.Parameter]:
        """The queries, and the embedding before the first token."""
        yield self.readout.queries
        yield self.writer.begin


def make_fast_decoder(model: VisionLanguageModel, code: FastCode) -> FastDecoder:
    """A decoder of the tokens of `code`."""
    return FastDecoder(model, code.chunk, code.expansions, code.num_symbols)


def score_tokens(
    writer: FastDecoder,
    model: VisionLanguageModel,
    prefix: PrefixCache,
    ids: Int[Tensor, "B L"],
    mask: Bool[Tensor, "B L"],
    temperature: float,
) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Log-probabilities and entropies of written tokens, 0 outside the mask."""
    # Nothing behind the longest sequence needs a pass of the language model.
    longest = int(mask.sum(1).max())
    distribution = writer.teacher_forced_logprobs(model, prefix, ids[:, :longest], temperature)
    # Tokens that do not fit have a log-probability of -inf, and 0 times -inf would be NaN.
    probabilities = distribution.exp()
    entropy = -(probabilities * distribution.masked_fill(probabilities == 0, 0.0)).sum(-1)
    logprobs = distribution.gather(-1, ids[:, :longest, None])[..., 0]
    # A padding id may have probability 0; its -inf must not reach the gradient of the others.
    counted = mask[:, :longest]
    padding = (0, ids.shape[1] - longest)
    logprobs, entropy = (
        nn.functional.pad(part.masked_fill(~counted, 0.0), padding) for part in (logprobs, entropy)
    )
    return logprobs, entropy
