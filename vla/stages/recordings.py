"""Keeping some episodes of a run to look at later: what was done, how likely it was, and what the update made of it."""

from __future__ import annotations

from pathlib import Path

import torch

from vla.config.robot import Sim
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


@torch.no_grad()
def record_update(
    folder: Path,
    sim: Sim,
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
        advantages=batch.advantages[rows].float(), logprobs_after=after,
    )  # fmt: skip
    return save_recording(folder, found)


def record_evaluation(folder: Path, sim: Sim, rollout: Rollout, name: str, decoding: str) -> Path:
    """Some wins and some failures of an evaluation."""
    found = record(rollout, choose(rollout, EPISODES), name, 0, sim.model_dump(mode="json"), decoding)
    return save_recording(folder, found)
