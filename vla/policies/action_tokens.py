"""Action tokens as the last ids of a vocabulary: their queries, distributions, draws and scores.

Shapes: `B` decisions, `S` states, `q` queries, `a` active action dimensions, `L` draws, `K` ids a
dimension, `d` width of the model.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.actions.bins import ActionBins
from vla.finite_checks import check_distribution
from vla.models.action_queries import ActionQueries, PlanReader, plan_moments
from vla.models.vlm import VisionLanguageModel
from vla.types import Observation


def reserve_action_ids(model: VisionLanguageModel, bins: ActionBins, temperature: float) -> int:
    """Reserve the vocabulary's last ids for bins, with similar embeddings for neighbouring bins.

    Returns the first of them.

    Raises:
        ValueError: more bins than ids, or a temperature that is not positive.
    """
    if bins.num_bins > model.backbone.vocabulary_size:
        raise ValueError(
            f"policy.num_bins ({bins.num_bins}) exceeds the vocabulary "
            f"({model.backbone.vocabulary_size}): choose fewer bins"
        )
    if temperature <= 0:
        raise ValueError(
            f"policy.temperature ({temperature}) must be positive; greedy decoding is a setting "
            "of the evaluation"
        )
    first = model.backbone.vocabulary_size - bins.num_bins
    model.backbone.order_embeddings(first, bins.num_bins)
    return first


def make_queries(
    model: VisionLanguageModel, num_queries: int, num_numbers: int
) -> tuple[ActionQueries, PlanReader | None]:
    """Queries for an action's numbers, and a plan reader (None without a plan head).

    The queries start from those of the plan head.
    """
    head = ActionQueries(num_queries, num_numbers, model.width)
    if model.plan is None:
        return head, None
    head.initialize_from(model.plan)
    num_plan_numbers = len(model.plan.dimensions)
    proprio_size = len(model.proprio_mean)
    return head, PlanReader(num_plan_numbers, proprio_size, num_queries, model.width)


def add_plan(
    reader: PlanReader | None,
    model: VisionLanguageModel,
    hidden: Float[Tensor, "B q d"],
    observation: Observation,
) -> Float[Tensor, "B q d"]:
    """States of the queries with advantage label and plan added."""
    labelled = model.with_advantage_label(hidden, observation)
    if reader is None:
        return labelled
    # The plan is read from the bare states: grounding trained its head on those, without labels.
    plan = plan_moments(model.plan_logits(hidden))
    return hidden + reader(plan, model.normalized_proprio(observation), labelled)


def restrict_to_valid(
    logits: Float[Tensor, "B L K"], valid: Bool[Tensor, "a K"], temperature: float
) -> Float[Tensor, "B L K"]:
    """Log-probabilities over the valid ids of each draw's dimension, at a temperature; -inf
    elsewhere."""
    # Draws run over the dimensions of one control step after another.
    dimension = torch.arange(logits.shape[1], device=logits.device) % len(valid)
    return (logits / temperature).masked_fill(~valid[dimension], -torch.inf).log_softmax(-1)


def score_ids(
    distribution: Float[Tensor, "S L K"],
    ids: Int[Tensor, "B L"],
    rows: Int[Tensor, "B"] | None = None,
) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Log-probabilities of drawn ids, and entropies of their distributions.

    `rows` is the row of `distribution` of each decision (None: its own).
    """
    rows = torch.arange(len(ids), device=ids.device) if rows is None else rows
    probabilities = distribution.exp()
    # Invalid ids have a log-probability of -inf, and 0 times -inf would be NaN.
    entropy = -(probabilities * distribution.masked_fill(probabilities == 0, 0.0)).sum(-1)
    draws = torch.arange(ids.shape[1], device=ids.device)
    return distribution[rows[:, None], draws, ids], entropy[rows]


def draw_ids(distribution: Float[Tensor, "*rows K"], greedy: bool) -> Int[Tensor, "*rows"]:
    """Ids drawn from log-probabilities by inverting the cumulative distribution.

    15 times faster than `torch.multinomial` on a CPU.

    Raises:
        FloatingPointError: a log-probability is NaN.
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
