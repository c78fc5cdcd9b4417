"""Advantage-conditioned training (RECAP; Physical Intelligence 2025, pi*0.6): learn from all, and
say what was good.

A value model, a distribution over the time to success, is fitted to all episodes. A decision whose
advantage is among the largest gets a word behind its instruction, the others another; a policy that
imitates all of them, labels and all, is then asked for the good ones. No likelihood of the policy
is needed: any policy that imitates can be refined.

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

VALUE_LEARNING_RATE, VALUE_BATCH = 1e-3, 256


def returns_to_go(
    trajectory: Int[Tensor, "R"], success: Bool[Tensor, "N"], longest: int
) -> Float[Tensor, "R"]:
    """Minus the decisions left until success as a share of `longest`, the most an episode can have;
    -1 where success never came: reward -1 a decision and 0 at success, a failure at the cost of a
    whole episode (pi*0.6, eq. 5).
    """
    counts = torch.bincount(trajectory, minlength=len(success))
    left = counts[trajectory] - 1 - position_in_trajectory(trajectory)
    return torch.where(success[trajectory], -left / longest, torch.tensor(-1.0)).clamp(min=-1.0)


def position_in_trajectory(trajectory: Int[Tensor, "R"]) -> Int[Tensor, "R"]:
    """How many rows of the same trajectory stand before each row."""
    order = torch.argsort(trajectory, stable=True)
    counts = torch.bincount(trajectory)
    firsts = counts.cumsum(0) - counts
    places = torch.empty_like(trajectory)
    places[order] = (
        torch.arange(len(trajectory), device=trajectory.device) - firsts[trajectory[order]]
    )
    return places


def nearest_bins(returns: Float[Tensor, "R"], num_bins: int) -> Int[Tensor, "R"]:
    """The bin of each return; bins are the points from -1 to 0, evenly spaced, ends included."""
    return ((returns + 1) * (num_bins - 1)).round().long().clamp(0, num_bins - 1)


def expected_value(logits: Float[Tensor, "R K"]) -> Float[Tensor, "R"]:
    """The mean of the distribution over those bins."""
    return logits.softmax(-1) @ torch.linspace(-1, 0, logits.shape[-1], device=logits.device)


def lookahead_advantages(
    values: Float[Tensor, "R"],
    returns: Float[Tensor, "R"],
    trajectory: Int[Tensor, "R"],
    lookahead: int | None,
) -> Float[Tensor, "R"]:
    """What came minus what was expected: A_t = (G_t - G_{t+m}) + V_{t+m} - V_t with m =
    `lookahead`, where the trajectory is that long; G_t - V_t where it is not, or without a
    lookahead (pi*0.6, eq. 2).
    """
    if lookahead is None:
        return returns - values
    order = torch.argsort(trajectory, stable=True)
    at = torch.arange(len(order), device=order.device)
    later = (at + lookahead).clamp(max=len(order) - 1)
    goes_on = (at + lookahead < len(order)) & (trajectory[order[later]] == trajectory[order])
    ahead = values[order[later]] - returns[order[later]]
    found = torch.empty_like(values)
    found[order] = (
        returns[order] - values[order] + torch.where(goes_on, ahead, torch.zeros_like(ahead))
    )
    return found


def select_positive(found: Float[Tensor, "R"], share: float) -> Bool[Tensor, "R"]:
    """The `share` of rows with the largest advantages; ties at the threshold are not among them."""
    return found > torch.quantile(found.float(), 1 - share)


@torch.no_grad()
def value_features(model: VisionLanguageModel, observation: Observation) -> Float[Tensor, "B f"]:
    """What the value model sees: the state of the instruction's last token, what is felt, and the
    plan with the state behind it where the model has one.
    """
    prefix, plan = model.prefix(observation), model.plan
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
    """Train the head in place by cross-entropy on random batches; the last loss."""
    losses: list[float] = []

    def loss_of(rows: Tensor) -> tuple[Tensor, Metrics]:
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
        loss_of,
        lambda step, metrics: losses.append(metrics["loss"]),
    )
    return losses[-1]
