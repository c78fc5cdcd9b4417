"""Log-probabilities and entropies of chosen tokens without ever holding the logits of every position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vla.decoding.sampling import unpack_support

_LOWEST = -1e30
"""Stands for log 0 where it is multiplied by a probability of 0."""


class _ChosenLogProbs(torch.autograd.Function):
    """log softmax(z)[a] and the entropy H of softmax(z); the gradient is one pass over the saved log-probabilities.

    d logp / dz_j = [j = a] - p_j;   dH / dz_j = -p_j (log p_j + H).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = torch.log_softmax(logits, -1).clamp_(min=_LOWEST)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        ctx.save_for_backward(logprobs, targets, entropy)
        return logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad_chosen, grad_entropy = grads
        logprobs, targets, entropy = ctx.saved_tensors
        weight = (logprobs + entropy[:, None]).mul_(-grad_entropy[:, None]).sub_(grad_chosen[:, None])
        grad = weight.mul_(logprobs.exp())
        return grad.scatter_add_(-1, targets[:, None], grad_chosen[:, None].to(grad)), None


def chosen_logprobs(
    logits: Float[Tensor, "K V"], targets: Int[Tensor, "K"]
) -> tuple[Float[Tensor, "K"], Float[Tensor, "K"]]:
    """(log-probability of each target, entropy of each distribution) under softmax(logits); -inf logits have
    probability 0.
    """
    return _ChosenLogProbs.apply(logits, targets)


def token_logprobs(
    head: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "K d"],
    targets: Int[Tensor, "K"],
    temperature: float = 1.0,
    support: UInt8[Tensor, "K V8"] | None = None,
    max_logits_bytes: int = 2**29,
) -> tuple[Float[Tensor, "K"], Float[Tensor, "K"]]:
    """`chosen_logprobs` of `head(hidden) / temperature`, restricted to `support` (`pack_support`) where one is given.

    Logits are made for at most `max_logits_bytes` of float32 at a time; when that takes more than one chunk, each
    chunk is made again in the backward pass instead of being kept.
    """

    def one_chunk(hidden: Tensor, targets: Tensor, support: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = head(hidden).float()
        if temperature != 1.0:
            logits = logits / temperature
        if support is not None:
            logits = logits.masked_fill(~unpack_support(support, logits.shape[-1]), -torch.inf)
        return chosen_logprobs(logits, targets)

    rows = max(1, max_logits_bytes // (4 * vocab_size_of(head)))
    if len(targets) <= rows:
        return one_chunk(hidden, targets, support)
    chunks = [
        checkpoint(one_chunk, hidden[i : i + rows], targets[i : i + rows], _rows(support, i, rows), use_reentrant=False)
        for i in range(0, len(targets), rows)
    ]
    return torch.cat([logprobs for logprobs, _ in chunks]), torch.cat([entropy for _, entropy in chunks])


def _rows(value: Tensor | None, start: int, count: int) -> Tensor | None:
    return None if value is None else value[start : start + count]


def vocab_size_of(head: Any) -> int:
    """Number of logits an output head makes (a Linear, or a wrapper around one)."""
    return int(head.out_features if hasattr(head, "out_features") else head.weight.shape[0])
