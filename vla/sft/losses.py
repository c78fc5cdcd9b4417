"""Masked means of the heads' `imitation_terms`, and losses of plans and answers, over processes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.models.vlm import VisionLanguageModel
from vla.policies.vla_policy import VlaPolicy
from vla.types import Observation


def global_fraction(count: Tensor | int, reduce_sum: ReduceSum) -> Float[Tensor, ""] | float:
    """This process's fraction of the global count; 1 for a single process.

    A local mean times this fraction, summed over processes, is the global mean.
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
    """Masked mean of the policy's terms (cross-entropy of tokens, squared error of a flow).

    With several processes, this one's part: the parts add up to the mean.
    """
    terms, mask = policy.imitation_terms(observation, actions, action_mask)
    return (terms * mask).sum() / mask.sum().clamp(min=1) * global_fraction(mask.sum(), reduce_sum)


def plan_loss(
    model: VisionLanguageModel,
    observation: Observation,
    numbers: Int[Tensor, "B a"],
    layers: list[Tensor] | None = None,
    prefix: Float[Tensor, "B P W"] | None = None,
    reduce_sum: ReduceSum = single_process,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Loss of the plan head, and its mean absolute error in tokens.

    Every query predicts every target `numbers` [B, a] of the instruction, as location tokens from
    0. The loss is cross-entropy plus the absolute error of the expected token divided by
    `EXPECTED_SCALE`, averaged over queries and targets. Policies read the expectation of a plan,
    hence the second term. `layers` receives the hidden states of all layers. `prefix` is the
    observation's, where it has been computed already.
    """
    assert model.plan is not None, "this model has no plan head"
    prefix = model.prefix(observation) if prefix is None else prefix
    _, hidden = model(
        prefix, observation.tokens, observation.token_mask, model.plan.queries, layers=layers
    )
    logits = model.plan_logits(hidden)
    # Every query has the same targets: [B, a] -> [B, queries, a].
    targets = numbers[:, None].expand(logits.shape[:-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 2), targets.flatten())
    tokens = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    expected = logits.softmax(-1) @ tokens
    distance = (expected - targets).abs().mean()
    fraction = global_fraction(len(numbers), reduce_sum)
    return (loss + distance / EXPECTED_SCALE) * fraction, distance.detach() * fraction


EXPECTED_SCALE = 4.0
"""An expectation with an error of this many tokens costs one nat."""


def answer_loss(
    model: VisionLanguageModel,
    observation: Observation,
    answers: Bool[Tensor, "B n"],
    segments: Int[Tensor, "B n"],
    prefix: Float[Tensor, "B P W"] | None = None,
    reduce_sum: ReduceSum = single_process,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Next-token cross-entropy and accuracy on the answer tokens of packed questions.

    `answers[b, i]` marks a token of an answer, which is predicted from token i - 1. `segments`
    numbers the questions of a row. `prefix` is the observation's, where it has been computed
    already.
    """
    prefix = model.prefix(observation) if prefix is None else prefix
    hidden, _ = model(prefix, observation.tokens, observation.token_mask, segments=segments)
    rows, columns = answers[:, 1:].nonzero(as_tuple=True)
    logits = model.backbone.logits(hidden[rows, columns])
    targets = observation.tokens[rows, columns + 1]
    loss = torch.nn.functional.cross_entropy(logits, targets)
    fraction = global_fraction(len(targets), reduce_sum)
    return loss * fraction, (logits.argmax(-1) == targets).float().mean() * fraction
