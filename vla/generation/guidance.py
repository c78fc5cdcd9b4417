"""Guidance between several ways to ask: what one prompt makes likelier than all of them do is made
likelier still.

Classifier-free guidance (Ho and Salimans 2022; of language models Sanchez et al. 2023) where the
other side is not a prompt without a label but the mean of all labels. As in contrastive decoding
(Li et al. 2023), a token that the own prompt finds implausible is never said, however much less the
others like it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.data.chat import pad_prompts
from vla.generation.generate import Generation, Prefix, advance, empty_generation, prefill
from vla.generation.hf_decoder import evaluation_mode, output_head
from vla.generation.sampling import Sampling, draw_by_inverse_cdf, shape_logits

PLAUSIBLE = 0.1
"""Share of the likeliest token's probability, behind the own prompt, that a token must have."""


def contrastive_logprobs(logprobs: Float[Tensor, "K B V"], guidance: float) -> Float[Tensor, "B V"]:
    """Of K prompts a row, the own one first: mean + guidance * (own - mean), -inf where the own one
    finds it implausible. A guidance of 1 leaves the own distribution, but for that.
    """
    own = logprobs[0]
    mean = logprobs.mean(0)
    likely = own >= own.max(-1, keepdim=True).values + torch.log(torch.tensor(PLAUSIBLE))
    return (mean + guidance * (own - mean)).masked_fill(~likely, -torch.inf)


@dataclass(frozen=True)
class GuidedEngine:
    """An `Engine`: draws behind a prompt against the other ways to ask the same, `others[prompt
    ids]`, as many for every prompt. `autocast` is the type of matrix products, None for that of the
    weights.

    Log-probabilities are those of the guided distribution, which no model scores again. Raises
    KeyError for a prompt of which no others are known.
    """

    model: nn.Module
    others: Mapping[tuple[int, ...], Sequence[Sequence[int]]]
    guidance: float
    autocast: torch.dtype | None = None

    @torch.no_grad()
    def __call__(
        self,
        tokens: Int[Tensor, "B n"],
        mask: Bool[Tensor, "B n"],
        sampling: Sampling,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        pad_id: int,
        greedy: bool,
    ) -> Generation:
        uniform = torch.rand(len(tokens), max_new_tokens).to(tokens.device)
        rows = torch.arange(len(tokens), device=tokens.device)
        stop = torch.tensor(list(stop_ids), device=tokens.device)
        out = empty_generation(
            len(tokens), max_new_tokens, pad_id, tokens.device, with_values=False
        )
        going = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        precision = torch.autocast(
            tokens.device.type, self.autocast, enabled=self.autocast is not None
        )
        with precision, evaluation_mode(self.model):
            prefix = self._read(tokens, mask, max_new_tokens, pad_id)
            for t in range(max_new_tokens):
                heard = (
                    output_head(self.model)(prefix.hidden)
                    .float()
                    .log_softmax(-1)
                    .unflatten(0, (-1, len(tokens)))
                )
                logprobs = shape_logits(
                    contrastive_logprobs(heard, self.guidance), sampling
                ).log_softmax(-1)
                token = (
                    logprobs.argmax(-1)
                    if greedy
                    else draw_by_inverse_cdf(logprobs.exp(), uniform[:, t])
                )
                out.tokens[going, t] = token[going]
                out.mask[:, t] = going
                out.logprobs[going, t] = logprobs[rows, token][going]
                going = going & ~torch.isin(token, stop)
                if t + 1 == max_new_tokens or not bool(going.any()):
                    break
                prefix = advance(self.model, prefix, token.repeat(len(heard)))
        return out

    def _read(self, tokens: Tensor, mask: Tensor, max_new_tokens: int, pad_id: int) -> Prefix:
        """Every prompt, then the first of the others of every prompt, then the second."""
        own = [tuple(row[there].tolist()) for row, there in zip(tokens, mask, strict=True)]
        asked = [
            *own,
            *(
                list(ids)
                for ways in zip(*(self.others[ids] for ids in own), strict=True)
                for ids in ways
            ),
        ]
        padded, there = pad_prompts(asked, max(map(len, asked)), pad_id)
        return prefill(
            self.model, padded.to(tokens.device), there.to(tokens.device), max_new_tokens
        )
