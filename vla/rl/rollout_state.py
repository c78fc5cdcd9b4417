"""State of an unfinished rollout: buffer, saved state, and restoring by replayed actions."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vla.devices import to_host
from vla.rl.protocols import VectorEnvironment
from vla.types import Decision, Observation, Rollout, StateDict, concatenate_rows

TENSORS = ("terminated", "truncated", "success", "final_values", "control_steps")


@dataclass
class RolloutBuffer:
    """Rows of a rollout (one entry per call of the policy), and its values per trajectory."""

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

    def state_dict(self) -> StateDict:
        """The buffer in the types of a checkpoint."""
        return {
            "observation": observation_state(concatenate_rows(self.observations)),
            "decision": dict(vars(concatenate_rows(self.decisions))),
            "rewards": torch.cat(self.rewards),
            "trajectories": torch.cat(self.trajectories),
            "measured": dict(self.measured),
            "of_trajectories": {name: getattr(self, name) for name in TENSORS},
        }

    def load_state_dict(self, state: StateDict) -> None:
        self.observations = [Observation(**state["observation"])]
        self.decisions = [Decision(**state["decision"])]
        self.rewards = [state["rewards"]]
        self.trajectories = [state["trajectories"]]
        self.measured = dict(state["measured"])
        for name in TENSORS:
            setattr(self, name, state["of_trajectories"][name])


def rollout_state(
    store: RolloutBuffer,
    running: Int[Tensor, "n"],
    ids: np.ndarray,
    pending: int,
    observation: Observation,
) -> StateDict:
    """State to continue a rollout: the buffer, and the trajectory of each environment."""
    places = {"running": running, "ids": ids, "pending": pending}
    return {"store": store.state_dict(), "observation": observation_state(observation), **places}


def restore_rollout(
    state: StateDict,
    store: RolloutBuffer,
    environment: VectorEnvironment,
) -> Observation:
    """Restore buffer and environments from `rollout_state`; return the next observation."""
    store.load_state_dict(state["store"])
    replay(environment, store, state["running"], state["ids"])
    return Observation(**state["observation"])


def replay(
    environment: VectorEnvironment,
    store: RolloutBuffer,
    running: Int[Tensor, "n"],
    ids: Int[np.ndarray, "n"],
) -> None:
    """Replay the unfinished trajectories in the environments `ids`, from their starts.

    One start and the same actions lead to the same state, so environments need no saved state.
    """
    environment.reset(store.seeds[running].tolist(), ids)
    trajectory = torch.cat(store.trajectories)
    action = torch.cat([d.action for d in store.decisions])
    done = [action[trajectory == int(number)] for number in running]
    for step in range(max(map(len, done))):
        going = [place for place, actions in enumerate(done) if step < len(actions)]
        chunk = torch.stack([done[place][step] for place in going])
        environment.step(np.asarray(chunk.float(), dtype=np.float32), ids[going])


def observation_state(observation: Observation) -> StateDict:
    return dict(vars(to_host(observation)))


def encode_rollout(rollout: Rollout) -> StateDict:
    """Encode a rollout in the types of a checkpoint."""
    values = {f.name: getattr(rollout, f.name) for f in fields(rollout)}
    return {**values, "observation": observation_state(rollout.observation)}


def decode_rollout(state: StateDict) -> Rollout:
    return Rollout(**{**state, "observation": Observation(**state["observation"])})
