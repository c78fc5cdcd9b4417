"""Update of a policy from one rollout: epochs, minibatches and micro-batches, with diagnostics.

Rows without a gradient are never scored. A minibatch's loss is its share of the global loss
times the number of shares, so its expectation is the loss of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter

from vla.collectives import ReduceSum, single_process, sum_gradients
from vla.devices import module_device, to_device
from vla.rl import validation as checks
from vla.rl.batch import Batch, LossOutput
from vla.rl.choices import Level
from vla.rl.diagnostics import Diagnostics, NonFiniteError, rows_with_bad_gradients
from vla.rl.kl import masked_kl
from vla.rl.losses import importance_weights
from vla.rl.protocols import Algorithm, Critic, Optimizer, Policy
from vla.rl.scoring import score_logprobs
from vla.rl.trust_region import take_step
from vla.threads import SINGLE_THREAD, Threads, add_gradients, split_evenly
from vla.types import ActionScores, Rollout, map_rows

STEP_KL_ROWS = 1024
"""Most rows to measure the length of a step on."""


@dataclass(frozen=True)
class UpdateSettings:
    """Split of a batch into steps, and limits of an update.

    `num_minibatches` optimizer steps per epoch; `micro_batch_rows` rows per forward pass, which
    changes memory and nothing else. `target_kl` stops before an optimizer step once the mean KL
    (k3, nats per draw) from the acting policy exceeds it. `target_step_kl` scales every optimizer
    step to that mean KL (k3) of a decision in nats, over some rows of the batch. `importance_cap`
    scores the rollout again first and corrects for the gap to the acting policy (truncated
    importance sampling).
    """

    epochs: int
    num_minibatches: int
    micro_batch_rows: int
    max_grad_norm: float | None = None
    target_kl: float | None = None
    target_step_kl: float | None = None
    importance_cap: float | None = None
    importance_level: Level = "draw"

    def __post_init__(self) -> None:
        checks.check_at_least("epochs", self.epochs, 1, "it is the number of passes over a rollout")
        checks.check_at_least(
            "num_minibatches",
            self.num_minibatches,
            1,
            "it is the number of optimizer steps per epoch",
        )
        checks.check_at_least(
            "micro_batch_rows",
            self.micro_batch_rows,
            1,
            "it is the number of rows per forward pass",
        )
        for setting in ("max_grad_norm", "target_kl", "target_step_kl", "importance_cap"):
            if getattr(self, setting) is not None:
                checks.check_positive(setting, getattr(self, setting), "null switches it off")
        checks.check_one_of("importance_level", self.importance_level, ("draw", "decision"))


def update(
    policy: Policy,
    algorithm: Algorithm,
    rollout: Rollout,
    optimizer: Optimizer,
    settings: UpdateSettings,
    *,
    generator: torch.Generator,
    ref_logprobs: Float[Tensor, "R L"] | None = None,
    critic_warmup: bool = False,
    reduce_sum: ReduceSum = single_process,
    threads: Threads = SINGLE_THREAD,
) -> dict[str, float]:
    """Update the policy from a rollout; return metrics.

    Args:
        generator: CPU generator that shuffles rows.
        critic_warmup: use the value loss only, and move the critic's own parameters only.
        threads: micro-batches scored at once, for policies that several threads can score.

    Raises:
        NonFiniteError: before an optimizer step with a non-finite loss or gradient.
        ValueError: for a missing reference or critic.
    """
    check_needs(
        algorithm,
        has_reference=ref_logprobs is not None,
        critic_warmup=critic_warmup,
        has_critic=isinstance(policy, Critic),
    )
    batch = algorithm.prepare(rollout, ref_logprobs, reduce_sum)
    if settings.importance_cap is not None:
        batch = correct_for_behaviour(policy, batch, settings, reduce_sum)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    movable = trainable_critic_parameters(policy) if critic_warmup else parameters
    rows = batch.active_rows
    unit = shuffle_units(rollout)
    diagnostics = Diagnostics(rollout.logprobs)
    num_active = float(reduce_sum(torch.tensor(float(len(rows)), dtype=torch.float64)))
    diagnostics.rows_active = num_active
    steps: dict[str, float] = {}
    for _ in range(settings.epochs):
        if diagnostics.stopped_early or num_active == 0:
            break
        for part in minibatches(rows, unit, settings.num_minibatches, generator):
            diagnostics.start_minibatch()
            optimizer.zero_grad()
            share = float(reduce_sum(torch.tensor(float(len(part)), dtype=torch.float64)))
            if share == 0:
                continue
            # The expectation of a minibatch's loss is then the loss of the whole batch.
            scale = num_active / share
            accumulate_gradients(
                policy,
                algorithm,
                batch,
                part,
                settings,
                scale,
                critic_warmup,
                diagnostics,
                parameters,
                threads,
            )
            if diagnostics.finish_minibatch(share / num_active, reduce_sum):
                optimizer.zero_grad()
                raise NonFiniteError("loss", diagnostics.bad_rows, diagnostics.num_optimizer_steps)
            if settings.target_kl is not None and diagnostics.approx_kl > settings.target_kl:
                diagnostics.stopped_early = True
                break
            norm = finish_gradients(parameters, movable, settings.max_grad_norm, reduce_sum)
            if not torch.isfinite(norm):
                optimizer.zero_grad()
                bad_rows = rows_with_bad_gradients(policy, algorithm, batch, part, movable)
                raise NonFiniteError("gradient", bad_rows, diagnostics.num_optimizer_steps)
            kl = partial(
                policy_shift_kl, policy, batch, rows[:: 1 + len(rows) // STEP_KL_ROWS], reduce_sum
            )
            steps = take_step(
                optimizer, movable, None if critic_warmup else settings.target_step_kl, kl
            )
            diagnostics.note_step(float(norm))
    optimizer.zero_grad()
    return {**batch.metrics, **diagnostics.summary(), **steps}


@torch.no_grad()
def policy_shift_kl(
    policy: Policy, batch: Batch, rows: Int[Tensor, "K"], reduce_sum: ReduceSum = single_process
) -> float:
    """Mean KL (k3 estimate, nats) of a decision from the acting policy, over `rows`."""
    kl = torch.zeros((), dtype=torch.float64)
    if len(rows):  # another process may have rows where this one has none
        part = to_device(batch.select(rows), module_device(policy))
        scores = policy.score(part.observation, part.trace)
        kl = masked_kl(part.old_logprobs, scores.logprobs, part.mask, "k3").sum().double().cpu()
    total, count = reduce_sum(
        torch.stack([kl, torch.tensor(float(len(rows)), dtype=torch.float64)])
    ).unbind()
    return float(total / count.clamp(min=1))


def check_needs(
    algorithm: Algorithm,
    *,
    has_reference: bool,
    critic_warmup: bool = False,
    has_critic: bool = True,
) -> None:
    """Check that an algorithm has its reference and critic.

    Raises:
        ValueError: for a missing one.
    """
    if algorithm.needs_reference and not has_reference:
        raise ValueError(
            "kl_coefficient is above 0 but there is no reference policy: give one, or set it to 0"
        )
    if critic_warmup and not algorithm.needs_values:
        raise ValueError(
            "critic warm-up is on but the algorithm has no critic: set "
            "num_critic_warmup_iterations to 0"
        )
    if critic_warmup and not has_critic:
        raise ValueError(
            "critic warm-up needs a policy with critic_parameters() and value(): set it to 0"
        )


def shuffle_units(rollout: Rollout) -> Int[Tensor, "R"]:
    """Unit number of each row; shuffling keeps the rows of a unit together.

    Where every trajectory is one decision, a unit is a group (answers to one prompt, draws from one
    state), because scoring shares most of its work. Otherwise each row is a unit.
    """
    rows = torch.arange(len(rollout.trajectory))
    return rollout.group[rollout.trajectory] if len(rows) == rollout.num_trajectories else rows


def minibatches(
    rows: Int[Tensor, "K"], unit: Int[Tensor, "R"], count: int, generator: torch.Generator
) -> list[Tensor]:
    """Split rows at random into `count` parts of about equally many whole units."""
    units, number = torch.unique(unit[rows], return_inverse=True)
    place = torch.randperm(len(units), generator=generator)[number]
    return [rows[place * count // max(len(units), 1) == part] for part in range(count)]


def trainable_critic_parameters(policy: Policy) -> list[Parameter]:
    """The critic's own trainable parameters, which value warm-up moves."""
    assert isinstance(policy, Critic)
    return [p for p in policy.critic_parameters() if p.requires_grad]


def accumulate_gradients(
    policy: Policy,
    algorithm: Algorithm,
    batch: Batch,
    rows: Int[Tensor, "B"],
    settings: UpdateSettings,
    scale: float,
    critic_warmup: bool,
    diagnostics: Diagnostics,
    parameters: list[Parameter],
    threads: Threads,
) -> None:
    """Add the gradient of a minibatch in micro-batches. A non-finite loss adds nothing; its rows go
    to `diagnostics`."""
    device = module_device(policy)

    def compute_loss(
        piece: Tensor,
    ) -> tuple[Tensor | None, tuple[Batch, ActionScores, LossOutput, Tensor]]:
        part = to_device(batch.select(piece), device)
        scores = policy.score(part.observation, part.trace)
        output = algorithm.loss(part, scores)
        lines = output.value if critic_warmup and output.value is not None else output.rows
        bad = piece[~torch.isfinite(lines.detach()).cpu()]
        learns = lines.requires_grad and not len(bad)
        # Diagnostics need neither images nor traces: free their memory before the next piece.
        light = replace(part, observation=replace(part.observation, images={}), trace={})
        result = light, map_rows(scores, Tensor.detach), map_rows(output, Tensor.detach), bad
        return lines.sum() * scale if learns else None, result

    # The order within a minibatch is free. Sorted rows of one start are neighbours, which a policy
    # can score together.
    pieces = split_evenly(rows.sort().values, settings.micro_batch_rows, threads)
    for piece, (part, scores, output, bad) in zip(
        pieces, add_gradients(parameters, pieces, compute_loss, threads), strict=True
    ):
        diagnostics.observe(piece, part, scores, output)
        diagnostics.bad_rows.extend(bad.tolist())


def finish_gradients(
    parameters: list[Parameter],
    movable: list[Parameter],
    max_norm: float | None,
    reduce_sum: ReduceSum,
) -> Float[Tensor, ""]:
    """Drop the gradients of fixed parameters, sum the others over processes, and clip them.

    Returns the norm before clipping.
    """
    allowed = {id(p) for p in movable}
    for parameter in parameters:
        if id(parameter) not in allowed:
            parameter.grad = None
    sum_gradients(movable, reduce_sum)
    with_gradient = [p for p in movable if p.grad is not None]
    limit = float("inf") if max_norm is None else max_norm
    return (
        torch.nn.utils.clip_grad_norm_(with_gradient, limit) if with_gradient else torch.zeros(())
    )


def correct_for_behaviour(
    policy: Policy, batch: Batch, settings: UpdateSettings, reduce_sum: ReduceSum = single_process
) -> Batch:
    """Start ratios from the present policy, and weight by the gap to the acting policy (truncated
    importance sampling).

    Every policy term is linear in a positive factor of its advantage, so the weights are folded
    into the advantages.
    """
    assert settings.importance_cap is not None
    proximal = score_logprobs(
        policy, batch.observation, batch.trace, len(batch), settings.micro_batch_rows
    )
    factor = importance_weights(
        proximal, batch.old_logprobs, batch.mask, settings.importance_cap, settings.importance_level
    )
    counted = batch.weights != 0
    total = reduce_sum(torch.where(counted, factor.expand(counted.shape), 0.0).sum())
    mean = total / reduce_sum(counted.sum()).clamp(min=1)
    metrics = {**batch.metrics, "importance_weight_mean": float(mean)}
    return replace(
        batch, old_logprobs=proximal, advantages=batch.advantages * factor, metrics=metrics
    )
