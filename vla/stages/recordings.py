"""Keeping some episodes of a run to look at later: what was done, how likely it was, and what the update made of it."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.config.robot import GymSim, Sim
from vla.rl.protocols import Algorithm, Policy, Reference
from vla.rl.scoring import score_logprobs
from vla.types import Rollout, map_rows
from vla.viewer.recording import choose, record, rows_of, save_recording

EPISODES = 16
"""Episodes kept of a rollout."""


def reached(rollout: Rollout) -> dict[str, float]:
    """Share of trajectories that ever fulfilled each term of the task (above one half): where they stop short."""
    terms = {name: v for name, v in rollout.episodes.items() if name not in ("seed", "control_steps", "success")}
    return {
        f"reached_{name}": float((values[~values.isnan()] > 0.5).float().mean())
        for name, values in terms.items()
        if "/" not in name and not bool(values.isnan().all())
    }


def chain_of(policy: Policy, rollout: Rollout, rows: Int[Tensor, "D"]) -> Float[Tensor, "D K H A"] | None:
    """The states of a denoising chain around the steps that were draws, as actions; None for other policies."""
    trace, normalizer = rollout.trace, getattr(policy, "normalizer", None)
    if normalizer is None or not {"before", "after"} <= trace.keys():
        return None
    return normalizer.decode(torch.cat([trace["before"][rows], trace["after"][rows][:, -1:]], dim=1)).float()


@torch.no_grad()
def record_update(
    folder: Path,
    sim: Sim | GymSim,
    policy: Policy,
    algorithm: Algorithm,
    reference: Reference | None,
    rollout: Rollout,
    iteration: int,
    micro_batch_rows: int,
) -> Path:
    """Some groups of the rollout that `policy` was just updated from, with the advantages that the algorithm gave them
    and the log-probabilities after the update.
    """
    chosen = choose(rollout, EPISODES)
    rows = rows_of(rollout, chosen)
    batch = algorithm.prepare(rollout, None if reference is None else reference.logprobs(rollout))
    observation, trace = (map_rows(part, lambda tensor: tensor[rows]) for part in (rollout.observation, rollout.trace))
    after = score_logprobs(policy, observation, trace, len(rows), micro_batch_rows)
    found = record(
        rollout, chosen, "rl", iteration, sim.model_dump(mode="json"), "sampled",
        advantages=batch.advantages[rows].float(), logprobs_after=after, chain=chain_of(policy, rollout, rows),
    )  # fmt: skip
    return save_recording(folder, found)


def record_evaluation(
    folder: Path, sim: Sim | GymSim, policy: Policy, rollout: Rollout, name: str, decoding: str
) -> Path:
    """Some wins and some failures of an evaluation."""
    chosen = choose(rollout, EPISODES)
    chain = chain_of(policy, rollout, rows_of(rollout, chosen))
    return save_recording(folder, record(rollout, chosen, name, 0, sim.model_dump(mode="json"), decoding, chain=chain))
