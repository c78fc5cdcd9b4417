"""Recordings of robot episodes: actions, log-probabilities and the effect of the update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.collectives import ReduceSum, single_process
from vla.config.simulation import Simulation
from vla.data.episode_recording import EpisodeRecording, save_recording
from vla.policies.head import ChainHead
from vla.policies.vla_policy import VlaPolicy
from vla.rl.protocols import Algorithm, Policy, Reference
from vla.rl.scoring import score_logprobs
from vla.types import Rollout, map_rows

NUM_EPISODES = 16
"""Recorded episodes of a rollout."""


def trajectory_rows(rollout: Rollout, trajectories: Int[Tensor, "N"]) -> Int[Tensor, "D"]:
    """Rows of the given trajectories, in their order; rows of one trajectory in order of time."""
    return torch.cat([(rollout.trajectory == int(i)).nonzero().squeeze(1) for i in trajectories])


def choose_trajectories(rollout: Rollout, count: int) -> Int[Tensor, "N"]:
    """Choose about `count` trajectories to record.

    Whole groups are chosen, those with the largest spread of returns first. Without groups, half
    of the trajectories are successes and half failures, as far as there are enough.
    """
    success = torch.zeros(rollout.num_trajectories) if rollout.success is None else rollout.success
    groups = torch.unique(rollout.group)
    if len(groups) == rollout.num_trajectories:
        successes = (success > 0.5).nonzero().squeeze(1)
        failures = (success <= 0.5).nonzero().squeeze(1)
        num_successes = min(len(successes), max(count // 2, count - len(failures)))
        return torch.cat([successes[:num_successes], failures[: count - num_successes]])
    spread = {
        int(group): float(rollout.returns[rollout.group == group].nan_to_num().std(correction=0))
        for group in groups
    }
    chosen: list[Tensor] = []
    for group in sorted(spread, key=lambda group: -spread[group]):
        members = (rollout.group == group).nonzero().squeeze(1)
        if chosen and sum(map(len, chosen)) + len(members) > count:
            break
        chosen.append(members)
    return torch.cat(chosen)


def record_trajectories(
    rollout: Rollout,
    trajectories: Int[Tensor, "N"],
    stage: str,
    iteration: int,
    sim: Mapping[str, Any],
    decoding: str,
    *,
    advantages: Tensor | None = None,
    logprobs_after: Tensor | None = None,
    chain: Tensor | None = None,
) -> EpisodeRecording:
    """Record some trajectories of a rollout.

    `advantages`, `logprobs_after` and `chain` hold the rows of these trajectories only, in the
    order of `trajectory_rows`. `sim` is the section `sim` of the settings.
    """
    assert rollout.action is not None
    assert rollout.success is not None
    rows = trajectory_rows(rollout, trajectories)
    number = torch.full((rollout.num_trajectories,), -1)
    number[trajectories] = torch.arange(len(trajectories))
    measures = {
        name: values[trajectories].float().numpy()
        for name, values in rollout.episodes.items()
        if name != "seed"
    }
    return EpisodeRecording(
        stage,
        iteration,
        sim,
        decoding,
        seed=rollout.episodes["seed"][trajectories].numpy(),
        group=rollout.group[trajectories].numpy(),
        success=(rollout.success[trajectories] > 0.5).numpy(),
        measures=measures,
        episode=number[rollout.trajectory[rows]].numpy(),
        action=rollout.action[rows].float().numpy(),
        reward=rollout.rewards[rows].numpy(),
        logprobs=rollout.logprobs[rows].float().numpy(),
        mask=rollout.mask[rows].numpy(),
        values=None if rollout.values is None else rollout.values[rows].float().numpy(),
        advantages=None if advantages is None else advantages.numpy(),
        logprobs_after=None if logprobs_after is None else logprobs_after.numpy(),
        chain=None if chain is None else chain.numpy(),
    )


def term_success_rates(
    rollout: Rollout, reduce_sum: ReduceSum = single_process
) -> dict[str, float]:
    """Fraction of trajectories in which each term of the task exceeded one half at some time.

    The first term with a low rate shows where episodes fail.
    """
    names = [
        name
        for name in rollout.episodes
        if name not in ("seed", "control_steps", "success") and "/" not in name
    ]
    values = [rollout.episodes[name] for name in names]
    # NaN marks a term that an episode's task does not have.
    sums = torch.tensor(
        [[float((term > 0.5).sum()), float((~term.isnan()).sum())] for term in values]
    ).reshape(-1, 2)
    num_reached, counts = reduce_sum(sums).unbind(1)
    rates = (num_reached / counts).tolist()
    return {
        f"reached_{name}": rate
        for name, rate in zip(names, rates, strict=True)
        if not math.isnan(rate)
    }


def denoising_chain(
    policy: Policy, rollout: Rollout, rows: Int[Tensor, "D"]
) -> Float[Tensor, "D K H A"] | None:
    """States of the denoising chain before and after each stochastic step, as actions.

    None for policies without a denoising chain.
    """
    head = policy.head if isinstance(policy, VlaPolicy) else None
    if not isinstance(head, ChainHead):
        return None
    return head.chain({name: tensor[rows] for name, tensor in rollout.trace.items()})


@torch.no_grad()
def record_update(
    folder: Path,
    sim: Simulation,
    policy: Policy,
    algorithm: Algorithm,
    reference: Reference | None,
    rollout: Rollout,
    iteration: int,
    micro_batch_rows: int,
) -> Path:
    """Record some groups of the rollout that `policy` was updated from; the file.

    The recording holds the algorithm's advantages and the log-probabilities after the update.
    """
    chosen = choose_trajectories(rollout, NUM_EPISODES)
    rows = trajectory_rows(rollout, chosen)
    batch = algorithm.prepare(rollout, None if reference is None else reference.logprobs(rollout))
    observation = map_rows(rollout.observation, lambda tensor: tensor[rows])
    trace = map_rows(rollout.trace, lambda tensor: tensor[rows])
    after = score_logprobs(policy, observation, trace, len(rows), micro_batch_rows)
    recording = record_trajectories(
        rollout,
        chosen,
        "rl",
        iteration,
        sim.model_dump(mode="json"),
        "sampled",
        advantages=batch.advantages[rows].float(),
        logprobs_after=after,
        chain=denoising_chain(policy, rollout, rows),
    )
    return save_recording(folder, recording)


def record_evaluation(
    folder: Path, sim: Simulation, policy: Policy, rollout: Rollout, name: str, decoding: str
) -> Path:
    """Record some successes and some failures of an evaluation; the file."""
    chosen = choose_trajectories(rollout, NUM_EPISODES)
    chain = denoising_chain(policy, rollout, trajectory_rows(rollout, chosen))
    return save_recording(
        folder,
        record_trajectories(
            rollout, chosen, name, 0, sim.model_dump(mode="json"), decoding, chain=chain
        ),
    )
