"""Log-probabilities and entropies of chosen tokens, with bounded memory for logits.

Shapes: `N` hidden states, `K` draws, `V` vocabulary, `V8` bytes of a support, `d` width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vla.generation.sampling import unpack_support

_LOWEST = -1e30
"""In place of log 0, so that its product with a probability of 0 is 0, not NaN."""
_BLOCK_BYTES = 2**20
"""Size of a block of logits: it fits into a processor's cache, which is faster than memory."""


class _ChosenLogProbs(torch.autograd.Function):
    """log softmax(z)[a] of several draws a from each row, and the entropy H of softmax(z).

    d logp / dz_j = [j = a] - p_j;   dH / dz_j = -p_j (log p_j + H).

    Of all tensors of the size of the logits, only the probabilities are stored. With `reuse` they
    overwrite the logits, and the gradient overwrites them.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, rows: Tensor, targets: Tensor, reuse: bool
    ) -> tuple[Tensor, Tensor]:
        chosen = logits[rows, targets]
        probabilities = logits.detach() if reuse else torch.empty_like(logits)
        totals = []
        entropies = []
        for z, p in zip(_blocks(logits.detach()), _blocks(probabilities), strict=True):
            largest = z.amax(-1, keepdim=True)
            shifted = (z - largest).clamp_(min=_LOWEST)
            weights = shifted.exp()
            total = weights.sum(-1, keepdim=True)
            log_total = total.log()
            entropies.append(
                (log_total - (shifted.mul_(weights)).sum(-1, keepdim=True) / total).squeeze(-1)
            )
            totals.append((largest + log_total).squeeze(-1))
            torch.div(weights, total, out=p)
        entropy = torch.cat(entropies)
        ctx.reuse = reuse
        ctx.save_for_backward(probabilities, rows, targets, entropy)
        return (chosen - torch.cat(totals)[rows]).clamp_(min=_LOWEST), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad_chosen, grad_entropy = grads
        probabilities, rows, targets, entropy = ctx.saved_tensors
        grad_rows = torch.zeros_like(entropy).index_add_(0, rows, grad_chosen)
        grad = probabilities if ctx.reuse else torch.empty_like(probabilities)
        uses_entropy = bool(grad_entropy.any())
        factors = [
            values[:, None].split(_block_rows(grad))
            for values in (-grad_rows, entropy, -grad_entropy)
        ]
        for p, out, factor, h, g in zip(
            _blocks(probabilities), _blocks(grad), *factors, strict=True
        ):
            if uses_entropy:
                factor = (p.log().clamp_(min=_LOWEST) + h).mul_(g).add_(factor)
            torch.mul(p, factor, out=out)
        return (
            grad.index_put_((rows, targets), grad_chosen.to(grad), accumulate=True),
            None,
            None,
            None,
        )


def _block_rows(logits: Tensor) -> int:
    return max(1, _BLOCK_BYTES // (logits.element_size() * max(logits.shape[-1], 1)))


def _blocks(logits: Tensor) -> tuple[Tensor, ...]:
    return logits.split(_block_rows(logits))


def chosen_logprobs(
    logits: Float[Tensor, "N V"],
    rows: Int[Tensor, "K"],
    targets: Int[Tensor, "K"],
    reuse: bool = False,
) -> tuple[Float[Tensor, "K"], Float[Tensor, "N"]]:
    """Log-probabilities of targets under softmax(logits[rows[k]]), and the entropy of every row.

    Logits of -inf have probability 0. `reuse` overwrites the logits; the gradient can then be taken
    once.
    """
    return _ChosenLogProbs.apply(logits, rows, targets, reuse)


def token_logprobs(
    head: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "N d"],
    slots: Int[Tensor, "K"],
    targets: Int[Tensor, "K"],
    temperature: float = 1.0,
    support: UInt8[Tensor, "K V8"] | None = None,
    max_logits_bytes: int = 2**29,
) -> tuple[Float[Tensor, "K"], Float[Tensor, "K"]]:
    """Log-probabilities and entropies in nats of draws from softmax(head(hidden[slots]) /
    temperature).

    `support[k]` (`pack_support`) restricts the distribution of draw k. Draws with one slot share
    its logits. At most `max_logits_bytes` of float32 logits exist at a time; if that takes more
    than one chunk, each chunk is computed again in the backward pass.
    """
    if support is None:
        slots, row = slots.unique(return_inverse=True)
    else:
        # Draws from one slot may have different supports, so none share their logits.
        row = torch.arange(len(slots), device=slots.device)
    hidden = hidden[slots]

    def one_chunk(
        hidden: Tensor, rows: Tensor, targets: Tensor, support: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits = head(hidden).float()
        if temperature != 1.0:
            logits = logits / temperature
        if support is not None:
            logits = logits.masked_fill(~unpack_support(support, logits.shape[-1]), -torch.inf)
        return chosen_logprobs(logits, rows, targets, reuse=True)

    size = max(1, max_logits_bytes // (4 * output_vocab_size(head)))
    if len(hidden) <= size:
        logprobs, entropy = one_chunk(hidden, row, targets, support)
        return logprobs, entropy[row]
    logprobs = hidden.new_zeros(len(row), dtype=torch.float32)
    entropies = []
    for start in range(0, len(hidden), size):
        draws = ((row >= start) & (row < start + size)).nonzero().squeeze(1)
        part_support = None if support is None else support[start : start + size]
        chosen, entropy = checkpoint(
            one_chunk,
            hidden[start : start + size],
            row[draws] - start,
            targets[draws],
            part_support,
            use_reentrant=False,
        )
        logprobs = logprobs.index_put((draws,), chosen)
        entropies.append(entropy)
    return logprobs, torch.cat(entropies)[row]


def output_vocab_size(head: Any) -> int:
    """Number of logits of an output head (a Linear, or a wrapper around one)."""
    return int(head.out_features if hasattr(head, "out_features") else head.weight.shape[0])
