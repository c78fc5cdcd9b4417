"""Keeping some episodes of a run to look at later: what was done, how likely it was, and what the
update made of it."""

from __future__ import annotations

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

EPISODES = 16
"""Episodes kept of a rollout."""


def trajectory_rows(rollout: Rollout, trajectories: Int[Tensor, "N"]) -> Int[Tensor, "D"]:
    """The rows of some trajectories, one after another in their order, each trajectory's in the
    order of time."""
    return torch.cat([(rollout.trajectory == int(i)).nonzero().squeeze(1) for i in trajectories])


def choose_trajectories(rollout: Rollout, count: int) -> Int[Tensor, "N"]:
    """About `count` trajectories worth looking at: whole groups, those first in which some succeed
    and some fail; of trajectories without siblings half wins and half failures, as far as there
    are.
    """
    success = torch.zeros(rollout.num_trajectories) if rollout.success is None else rollout.success
    groups = torch.unique(rollout.group)
    if len(groups) == rollout.num_trajectories:
        wins, failures = (success > 0.5).nonzero().squeeze(1), (success <= 0.5).nonzero().squeeze(1)
        num_wins = min(len(wins), max(count // 2, count - len(failures)))
        return torch.cat([wins[:num_wins], failures[: count - num_wins]])
    spread = {
        int(g): float(rollout.returns[rollout.group == g].nan_to_num().std(correction=0))
        for g in groups
    }
    chosen: list[Tensor] = []
    for group in sorted(spread, key=lambda g: -spread[g]):
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
    """Some trajectories of a rollout of a robot policy; what is given by name is of their rows
    (`trajectory_rows`) already."""
    assert rollout.action is not None
    assert rollout.success is not None
    rows = trajectory_rows(rollout, trajectories)
    number = torch.full((rollout.num_trajectories,), -1)
    number[trajectories] = torch.arange(len(trajectories))
    measures = {
        name: v[trajectories].float().numpy()
        for name, v in rollout.episodes.items()
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
    """Share of trajectories that ever fulfilled each term of the task (above one half): where they
    stop short."""
    names = [
        name
        for name in rollout.episodes
        if name not in ("seed", "control_steps", "success") and "/" not in name
    ]
    values = [rollout.episodes[name] for name in names]
    found = torch.tensor(
        [[float((v > 0.5).sum()), float((~v.isnan()).sum())] for v in values]
    ).reshape(-1, 2)
    done, counts = reduce_sum(found).unbind(1)
    shares = (done / counts).tolist()
    return {
        f"reached_{name}": share
        for name, share in zip(names, shares, strict=True)
        if share == share
    }


def denoising_chain(
    policy: Policy, rollout: Rollout, rows: Int[Tensor, "D"]
) -> Float[Tensor, "D K H A"] | None:
    """The states of a denoising chain around the steps that were draws, as actions; None for other
    policies."""
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
    """Some groups of the rollout that `policy` was just updated from, with the advantages that the
    algorithm gave them and the log-probabilities after the update.
    """
    chosen = choose_trajectories(rollout, EPISODES)
    rows = trajectory_rows(rollout, chosen)
    batch = algorithm.prepare(rollout, None if reference is None else reference.logprobs(rollout))
    observation, trace = (
        map_rows(part, lambda tensor: tensor[rows]) for part in (rollout.observation, rollout.trace)
    )
    after = score_logprobs(policy, observation, trace, len(rows), micro_batch_rows)
    found = record_trajectories(
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
    return save_recording(folder, found)


def record_evaluation(
    folder: Path, sim: Simulation, policy: Policy, rollout: Rollout, name: str, decoding: str
) -> Path:
    """Some wins and some failures of an evaluation."""
    chosen = choose_trajectories(rollout, EPISODES)
    chain = denoising_chain(policy, rollout, trajectory_rows(rollout, chosen))
    return save_recording(
        folder,
        record_trajectories(
            rollout, chosen, name, 0, sim.model_dump(mode="json"), decoding, chain=chain
        ),
    )
