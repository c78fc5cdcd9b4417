"""Advantage-conditioned training (RECAP; Physical Intelligence 2025): value model and labels.

A value model, a distribution over the time to success, is fitted to all episodes. Decisions with
the largest advantages get a positive label behind their instruction, the others a negative one. The
policy imitates all labelled decisions, and acts with the positive label. RECAP needs no likelihood
of the policy: it applies to any policy that imitates.

Shapes: `R` decisions of `N` trajectories, rows in the order of time within a trajectory; `K` bins.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from vla.models.action_queries import plan_moments
from vla.models.heads import BinnedValue
from vla.models.vlm import VisionLanguageModel
from vla.sft.loop import Metrics, SupervisedSettings, SupervisedTrainer
from vla.types import Observation

VALUE_LEARNING_RATE = 1e-3
VALUE_BATCH = 256


def returns_to_go(
    trajectory: Int[Tensor, "R"], success: Bool[Tensor, "N"], longest: int
) -> Float[Tensor, "R"]:
    """Minus the number of decisions left until success, divided by `longest`; -1 in failures.

    `longest` is the largest number of decisions of an episode. The reward is -1 for a decision and
    0 at success; a failure costs a whole episode (pi*0.6, eq. 5).
    """
    counts = torch.bincount(trajectory, minlength=len(success))
    num_left = counts[trajectory] - 1 - position_in_trajectory(trajectory)
    returns = torch.where(success[trajectory], -num_left / longest, -1.0)
    return returns.clamp(min=-1.0)


def position_in_trajectory(trajectory: Int[Tensor, "R"]) -> Int[Tensor, "R"]:
    """Index of each row within its trajectory, from 0."""
    # Stable sorting puts the rows of a trajectory together and keeps their order of time.
    order = torch.argsort(trajectory, stable=True)
    counts = torch.bincount(trajectory)
    firsts = counts.cumsum(0) - counts
    positions = torch.empty_like(trajectory)
    positions[order] = (
        torch.arange(len(trajectory), device=trajectory.device) - firsts[trajectory[order]]
    )
    return positions


def nearest_bins(returns: Float[Tensor, "R"], num_bins: int) -> Int[Tensor, "R"]:
    """Bin of each return; bins are `num_bins` evenly spaced points from -1 to 0, both included."""
    return ((returns + 1) * (num_bins - 1)).round().long().clamp(0, num_bins - 1)


def expected_value(logits: Float[Tensor, "R K"]) -> Float[Tensor, "R"]:
    """Mean of the distribution over the bins of `nearest_bins`."""
    return logits.softmax(-1) @ torch.linspace(-1, 0, logits.shape[-1], device=logits.device)


def lookahead_advantages(
    values: Float[Tensor, "R"],
    returns: Float[Tensor, "R"],
    trajectory: Int[Tensor, "R"],
    lookahead: int | None,
) -> Float[Tensor, "R"]:
    """Advantages A_t = (G_t - G_{t+m}) + V_{t+m} - V_t with m = `lookahead` (pi*0.6, eq. 2).

    G are the returns, V the values. A_t = G_t - V_t where the trajectory ends before t + m, and
    where `lookahead` is None.
    """
    if lookahead is None:
        return returns - values
    order = torch.argsort(trajectory, stable=True)
    # In sorted order the decision m steps later is m rows further, if the trajectory is the same.
    index = torch.arange(len(order), device=order.device)
    later = (index + lookahead).clamp(max=len(order) - 1)
    is_same = (index + lookahead < len(order)) & (trajectory[order[later]] == trajectory[order])
    bootstrap = values[order[later]] - returns[order[later]]
    bootstrap = torch.where(is_same, bootstrap, torch.zeros_like(bootstrap))
    advantages = torch.empty_like(values)
    advantages[order] = returns[order] - values[order] + bootstrap
    return advantages


def select_positive(advantages: Float[Tensor, "R"], fraction: float) -> Bool[Tensor, "R"]:
    """Mask of the `fraction` of rows with the largest advantages; ties at the threshold are
    excluded."""
    return advantages > torch.quantile(advantages.float(), 1 - fraction)


@torch.no_grad()
def value_features(model: VisionLanguageModel, observation: Observation) -> Float[Tensor, "B f"]:
    """Features of the value model: hidden state of the last instruction token and proprioception.

    A model with a plan head adds the mean query state and the moments of the plan.
    """
    prefix = model.prefix(observation)
    plan = model.plan
    queries = None if plan is None else plan.queries
    text, hidden = model(prefix, observation.tokens, observation.token_mask, queries)
    rows = torch.arange(len(text), device=text.device)
    parts = [text[rows, observation.token_mask.sum(1) - 1], model.normalized_proprio(observation)]
    if plan is not None:
        parts += [hidden.mean(1), plan_moments(model.plan_logits(hidden))]
    return torch.cat(parts, dim=-1)


def fit_values(
    head: BinnedValue, features: Float[Tensor, "M f"], bins: Int[Tensor, "M"], num_steps: int
) -> float:
    """Train the value head in place by cross-entropy on random batches; the last loss."""
    losses: list[float] = []

    def compute_loss(rows: Tensor) -> tuple[Tensor, Metrics]:
        return functional.cross_entropy(head(features[rows]), bins[rows]), {}

    settings = SupervisedSettings(
        num_steps=num_steps,
        batch_size=min(VALUE_BATCH, len(features)),
        learning_rate=VALUE_LEARNING_RATE,
        weight_decay=0.01,
        warmup_steps=round(0.05 * num_steps),
        max_grad_norm=1.0,
    )
    SupervisedTrainer(head, settings).train(
        lambda step: [torch.randint(len(features), (settings.batch_size,))],
        compute_loss,
        lambda step, metrics: losses.append(metrics["loss"]),
    )
    return losses[-1]
