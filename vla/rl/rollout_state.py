"""A rollout between two decisions: what is kept of it, and how another process goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vla.rl.protocols import VectorEnvironment
from vla.types import Decision, Observation, Rollout, concatenate_rows, map_rows

TENSORS = ("terminated", "truncated", "success", "final_values", "control_steps")


@dataclass
class RolloutBuffer:
    """Rows as they come (one entry per call of the policy), and what is known per trajectory."""

    seeds: Int[Tensor, "N"]
    observations: list[Observation] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)
    trajectories: list[Tensor] = field(default_factory=list)
    measured: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.num_trajectories = len(self.seeds)
        self.terminated = torch.zeros(self.num_trajectories, dtype=torch.bool)
        self.truncated = torch.zeros(self.num_trajectories, dtype=torch.bool)
        self.success = torch.zeros(self.num_trajectories)
        self.final_values = torch.zeros(self.num_trajectories)
        self.control_steps = torch.zeros(self.num_trajectories)

    def state_dict(self) -> dict[str, Any]:
        """All of it, as a checkpoint can hold it."""
        return {
            "observation": observation_state(concatenate_rows(self.observations)),
            "decision": dict(vars(concatenate_rows(self.decisions))),
            "rewards": torch.cat(self.rewards),
            "trajectories": torch.cat(self.trajectories),
            "measured": dict(self.measured),
            "of_trajectories": {name: getattr(self, name) for name in TENSORS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.observations = [Observation(**state["observation"])]
        self.decisions = [Decision(**state["decision"])]
        self.rewards, self.trajectories = [state["rewards"]], [state["trajectories"]]
        self.measured = dict(state["measured"])
        for name in TENSORS:
            setattr(self, name, state["of_trajectories"][name])


def rollout_state(
    store: RolloutBuffer,
    running: Int[Tensor, "n"],
    ids: np.ndarray,
    pending: int,
    observation: Observation,
) -> dict[str, Any]:
    """What another process needs to go on: all that was collected, and what runs where."""
    places = {"running": running, "ids": ids, "pending": pending}
    return {"store": store.state_dict(), "observation": observation_state(observation), **places}


def restore_rollout(
    kept: Mapping[str, Any],
    store: RolloutBuffer,
    environment: VectorEnvironment,
    device: torch.device,
) -> Observation:
    """Put store and environments to what `rollout_state` told; what the policy sees next."""
    store.load_state_dict(kept["store"])
    replay(environment, store, kept["running"], kept["ids"])
    return map_rows(Observation(**kept["observation"]), lambda tensor: tensor.to(device))


def replay(
    environment: VectorEnvironment,
    store: RolloutBuffer,
    running: Int[Tensor, "n"],
    ids: Int[np.ndarray, "n"],
) -> None:
    """Bring the environments `ids` to where the trajectories in them stand: from their starts, by
    their actions. One start and the same actions lead to the same state, so that no environment has
    to tell or take its state.
    """
    environment.reset(store.seeds[running].tolist(), ids)
    trajectory, action = (
        torch.cat(store.trajectories),
        torch.cat([d.action.cpu() for d in store.decisions]),
    )
    done = [action[trajectory == int(number)] for number in running]
    for step in range(max(map(len, done))):
        going = [place for place, actions in enumerate(done) if step < len(actions)]
        chunk = torch.stack([done[place][step] for place in going])
        environment.step(np.asarray(chunk.float(), dtype=np.float32), ids[going])


def observation_state(observation: Observation) -> dict[str, Any]:
    return dict(vars(map_rows(observation, lambda tensor: tensor.cpu())))


def encode_rollout(rollout: Rollout) -> dict[str, Any]:
    """A rollout as a checkpoint can hold it."""
    values = {f.name: getattr(rollout, f.name) for f in fields(rollout)}
    return {**values, "observation": observation_state(rollout.observation)}


def decode_rollout(state: Mapping[str, Any]) -> Rollout:
    return Rollout(**{**state, "observation": Observation(**state["observation"])})
