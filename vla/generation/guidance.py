"""Contrastive guidance between prompts: tokens that one prompt favours over the others gain weight.

Classifier-free guidance (Ho and Salimans 2022; for language models Sanchez et al. 2023), with the
mean of all prompts in place of an unconditional prompt. As in contrastive decoding (Li et al.
2023), tokens that are implausible under the row's own prompt have probability 0.

Shapes: `K` prompts a row, `B` rows, `V` vocabulary, `n` prompt tokens.
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
"""Least probability of a token under the own prompt, as a fraction of the likeliest token's."""


def contrastive_logprobs(logprobs: Float[Tensor, "K B V"], guidance: float) -> Float[Tensor, "B V"]:
    """Guided log-probabilities, not normalised: mean + guidance * (own - mean).

    The first of the K prompts is the row's own. Tokens implausible under it get -inf. A guidance of
    1 is the own distribution but for those.
    """
    own = logprobs[0]
    mean = logprobs.mean(0)
    likely = own >= own.max(-1, keepdim=True).values + torch.log(torch.tensor(PLAUSIBLE))
    return (mean + guidance * (own - mean)).masked_fill(~likely, -torch.inf)


@dataclass(frozen=True)
class GuidedEngine:
    """An `Engine` that guides a prompt by its alternatives.

    `others[prompt ids]` are the alternatives, equally many for every prompt. `autocast` is the type
    of matrix products, None for that of the weights. Log-probabilities are those of the guided
    distribution; `TextPolicy.score` does not reproduce them.

    Raises:
        KeyError: a prompt has no alternatives.
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
        unfinished = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        precision = torch.autocast(
            tokens.device.type, self.autocast, enabled=self.autocast is not None
        )
        with precision, evaluation_mode(self.model):
            prefix = self._read(tokens, mask, max_new_tokens, pad_id)
            for t in range(max_new_tokens):
                conditional = (
                    output_head(self.model)(prefix.hidden)
                    .float()
                    .log_softmax(-1)
                    .unflatten(0, (-1, len(tokens)))
                )
                logprobs = shape_logits(
                    contrastive_logprobs(conditional, self.guidance), sampling
                ).log_softmax(-1)
                token = (
                    logprobs.argmax(-1)
                    if greedy
                    else draw_by_inverse_cdf(logprobs.exp(), uniform[:, t])
                )
                out.tokens[unfinished, t] = token[unfinished]
                out.mask[:, t] = unfinished
                out.logprobs[unfinished, t] = logprobs[rows, token][unfinished]
                unfinished = unfinished & ~torch.isin(token, stop)
                if t + 1 == max_new_tokens or not bool(unfinished.any()):
                    break
                prefix = advance(self.model, prefix, token.repeat(len(conditional)))
        return out

    def _read(self, tokens: Tensor, mask: Tensor, max_new_tokens: int, pad_id: int) -> Prefix:
        """Prefill of every prompt, then every first alternative, then every second."""
        own = [tuple(row[real].tolist()) for row, real in zip(tokens, mask, strict=True)]
        prompts = [
            *own,
            *(
                list(ids)
                for ways in zip(*(self.others[ids] for ids in own), strict=True)
                for ids in ways
            ),
        ]
        padded, real = pad_prompts(prompts, max(map(len, prompts)), pad_id)
        return prefill(self.model, padded.to(tokens.device), real.to(tokens.device), max_new_tokens)
