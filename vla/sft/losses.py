"""Supervised losses as sums of per-token terms times weights fixed before the batch is cut."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.models.vlm import VisionLanguageModel
from vla.policies.vla_policy import VlaPolicy
from vla.types import Observation


def global_fraction(count: Tensor | int, reduce_sum: ReduceSum) -> Float[Tensor, ""] | float:
    """What part of all that counts, in the batches of all processes together, counts here: the mean
    over all is the sum of every process's own mean times its share.
    """
    if reduce_sum is single_process:
        return 1.0
    own = torch.as_tensor(count, dtype=torch.float64)
    return (own / reduce_sum(own).clamp(min=1)).float()


def imitation_loss(
    policy: VlaPolicy,
    observation: Observation,
    actions: Float[Tensor, "B H A"],
    action_mask: Bool[Tensor, "B H"],
    reduce_sum: ReduceSum = single_process,
) -> Float[Tensor, ""]:
    """The policy's own terms (cross-entropy of tokens, squared error of a flow), a mean over those
    that count; of many processes, this one's part of it.
    """
    terms, mask = policy.imitation_terms(observation, actions, action_mask)
    return (terms * mask).sum() / mask.sum().clamp(min=1) * global_fraction(mask.sum(), reduce_sum)


def plan_loss(
    model: VisionLanguageModel,
    observation: Observation,
    numbers: Int[Tensor, "B a"],
    layers: list[Tensor] | None = None,
    prefix: Float[Tensor, "B P d"] | None = None,
    reduce_sum: ReduceSum = single_process,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Every query of the plan head names every number that the instruction comes down to, as
    location tokens from 0.

    Cross-entropy plus the absolute error of the expected token over `EXPECTED_SCALE` (what a policy
    reads of a plan is its expectation), means over queries and numbers; and that error in tokens.
    `prefix` is the observation's, where it was computed already.
    """
    assert model.plan is not None, "this model has no plan head"
    prefix = model.prefix(observation) if prefix is None else prefix
    _, hidden = model(
        prefix, observation.tokens, observation.token_mask, model.plan.queries, layers=layers
    )
    logits = model.plan_logits(hidden)
    wanted = numbers[:, None].expand(logits.shape[:-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 2), wanted.flatten())
    places = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    expected = logits.softmax(-1) @ places
    distance = (expected - wanted).abs().mean()
    share = global_fraction(len(numbers), reduce_sum)
    return (loss + distance / EXPECTED_SCALE) * share, distance.detach() * share


EXPECTED_SCALE = 4.0
"""An expectation this many tokens off costs one nat."""


def answer_loss(
    model: VisionLanguageModel,
    observation: Observation,
    answers: Bool[Tensor, "B n"],
    segments: Int[Tensor, "B n"],
    prefix: Float[Tensor, "B P d"] | None = None,
    reduce_sum: ReduceSum = single_process,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Next-token cross-entropy and accuracy on the answer tokens of questions packed behind one
    prefix.

    `answers[b, i]`: token i belongs to an answer and is predicted from token i - 1. `segments`
    numbers the questions. `prefix` is the observation's, where it was computed already.
    """
    prefix = model.prefix(observation) if prefix is None else prefix
    hidden, _ = model(prefix, observation.tokens, observation.token_mask, segments=segments)
    rows, columns = answers[:, 1:].nonzero(as_tuple=True)
    logits = model.backbone.logits(hidden[rows, columns])
    targets = observation.tokens[rows, columns + 1]
    loss = torch.nn.functional.cross_entropy(logits, targets)
    share = global_fraction(len(targets), reduce_sum)
    return loss * share, (logits.argmax(-1) == targets).float().mean() * share
