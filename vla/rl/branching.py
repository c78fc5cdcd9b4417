"""Branches: several decisions executed from one simulator state and compared as a group.

A trajectory's reward carries little information about a single decision. A simulator that restores
an exact state carries more: it executes `num_branches` draws of the policy from one state, for one
chunk each. The score of a draw is its reward plus a critic's value of the next state. Draws from
one state are a group, and a branch is a trajectory of one decision. So every group algorithm (GRPO,
Dr. GRPO, RLOO, ...) can learn from branches. The method is the vine of TRPO (Schulman et al. 2015,
section 5.2) and VinePPO (Kazemnejad et al. 2024), with a critic after the first step in place of
whole rollouts. Branches are not rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vla.devices import to_host
from vla.rl.protocols import Policy, StepResult, VectorEnvironment
from vla.rl.state_critic import StateCritic
from vla.types import Decision, Observation, Rollout, StateDict, Trace, concatenate_rows, map_rows

FIRST_FIT = 1200
LATER_FIT = 120
"""Optimizer steps of the critic before the first branches, and after every rollout."""


@runtime_checkable
class BranchingEnvironment(VectorEnvironment, Protocol):
    """An environment that saves and restores its exact state, with a privileged state for a
    critic."""

    def get_state(self, ids: np.ndarray) -> Any: ...

    def set_state(self, state: Any, ids: np.ndarray) -> None: ...

    def privileged(self, ids: np.ndarray) -> np.ndarray: ...

    def step(
        self, actions: np.ndarray, ids: np.ndarray | None = None, *, render: bool = True
    ) -> StepResult: ...


@runtime_checkable
class ResamplingPolicy(Policy, Protocol):
    """A policy that draws again from the perception cached in a trace."""

    @property
    def can_redraw(self) -> bool:
        """True where traces hold the perception."""
        ...

    def redraw(self, observation: Observation, trace: Trace, count: int) -> Decision:
        """`count` decisions per row, consecutive for each row; their traces hold the
        perception."""
        ...


@dataclass(frozen=True)
class BranchSettings:
    """`num_branches` draws from a fraction `share` of the states; `discount` per decision."""

    num_branches: int
    share: float
    discount: float


class BranchCollector:
    """Collector of branches during a rollout.

    `before_step` is called with every decision before its execution. `rollout` returns the branches
    as a rollout. `gather` returns the values of all processes, so that the critic is the same in
    every process. `fit` holds the critic's explained variance of the last rollout.
    """

    def __init__(
        self,
        policy: ResamplingPolicy,
        environment: BranchingEnvironment,
        settings: BranchSettings,
        critic: StateCritic,
        seed: int,
        gather: Callable[[Any], list[Any]] = lambda value: [value],
    ):
        self.policy = policy
        self.environment = environment
        self.settings = settings
        self.critic = critic
        self.seed = seed
        self.gather = gather
        self.fit: dict[str, float] = {}
        self._branches: bool | None = None
        self.start(0)

    def start(self, iteration: int, shard: int | None = None) -> None:
        """Clear the branches. The seed and the iteration decide which states are branched.

        In a worker the number of the `shard` does so too.
        """
        numbers = [] if shard is None else [shard]
        self._rng = np.random.default_rng([self.seed, iteration, *numbers])
        self._num_rows = 0
        self._states: list[Tensor] = []
        self._tried: list[tuple[Tensor, Observation, Decision, Tensor, Tensor, Tensor]] = []

    def state_dict(self) -> StateDict:
        """States and branches since `start`."""
        tried = [
            (row, dict(vars(seen)), dict(vars(drawn)), *rest)
            for row, seen, drawn, *rest in self._tried
        ]
        states = {
            "rng": self._rng.bit_generator.state,
            "num_rows": self._num_rows,
            "states": list(self._states),
        }
        return {**states, "tried": tried}

    def load_state_dict(self, state: StateDict) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._num_rows, self._states = state["num_rows"], list(state["states"])
        self._tried = [
            (row, Observation(**seen), Decision(**drawn), *rest)
            for row, seen, drawn, *rest in state["tried"]
        ]

    def shard_settings(self) -> StateDict:
        """Whether a worker branches: its own critic is never fitted."""
        return {"ready": self.critic.ready}

    def start_shard(self, iteration: int, number: int, settings: StateDict) -> None:
        """Clear the branches in a worker, before a shard of the rollout."""
        self.start(iteration, number)
        self._branches = settings["ready"]

    def add_shards(self, states: Sequence[StateDict]) -> None:
        """Take over states and branches of the workers, in the order of their shards."""
        for state in states:
            first_row = self._num_rows
            self._num_rows += state["num_rows"]
            self._states += state["states"]
            self._tried += [
                (first_row + row, Observation(**seen), Decision(**drawn), *rest)
                for row, seen, drawn, *rest in state["tried"]
            ]

    def before_step(self, observation: Observation, decision: Decision, ids: np.ndarray) -> None:
        """Record the states, and execute branches from some of them."""
        self._states.append(torch.from_numpy(self.environment.privileged(ids)))
        row, self._num_rows = self._num_rows, self._num_rows + len(ids)
        if not (self.critic.ready if self._branches is None else self._branches):
            return
        chosen = np.flatnonzero(self._rng.random(len(ids)) < self.settings.share)
        if len(chosen):
            self._try(observation, decision.trace, torch.from_numpy(chosen), ids[chosen], row)

    def rollout(self, base: Rollout) -> Rollout | None:
        """The branches of `base`, the rollout just collected; then fit the critic on `base`.

        None without branches: the critic must be fitted first.
        """
        branches = self._assembled(base) if self._tried else None
        experience = self.gather(
            (torch.cat(self._states), discounted_returns(base, self.settings.discount))
        )
        states, returns = (torch.cat(parts) for parts in zip(*experience, strict=True))
        if self.critic.ready:
            error = (returns - self.critic(states)).var()
            self.fit = {
                "critic_explained_variance": float(1 - error / returns.var().clamp(min=1e-12))
            }
        self.critic.remember(states, returns)
        if self.critic.ready:
            self.critic.fit(LATER_FIT)
        if branches is None:
            return None
        return replace(branches, metrics={**base.metrics, **branches.metrics})

    def _try(
        self,
        observation: Observation,
        trace: Trace,
        chosen: Tensor,
        ids: np.ndarray,
        first_row: int,
    ) -> None:
        """Execute draws of some rows, each from its row's state, and restore that state."""
        count = self.settings.num_branches
        seen = map_rows(replace(observation, images={}), lambda tensor: tensor[chosen])
        rows = map_rows(trace, lambda tensor: tensor[chosen])
        draws = to_host(self.policy.redraw(seen, rows, count))
        actions = draws.action.float().numpy()
        start = self.environment.get_state(ids)
        for branch in range(count):
            result = self.environment.step(actions[branch::count], ids, render=False)
            ended = torch.as_tensor(np.asarray(result.terminated) | np.asarray(result.truncated))
            after = torch.from_numpy(self.environment.privileged(ids))
            reward = torch.as_tensor(np.asarray(result.reward), dtype=torch.float32)
            mine = map_rows(draws, partial(take_every, first=branch, count=count))
            self._tried.append((first_row + chosen, seen, mine, reward, after, ended))
            self.environment.set_state(start, ids)

    def _assembled(self, base: Rollout) -> Rollout:
        """A rollout with one trajectory per branch: reward of the chunk plus the critic's value.

        The branches of a state are consecutive, so that they are scored together.
        """
        rows, seen, drawn, reward, after, ended = (
            list(parts) for parts in zip(*self._tried, strict=True)
        )
        expected = self.critic(torch.cat(after)) * ~torch.cat(ended)
        _, group = torch.unique(torch.cat(rows), return_inverse=True)
        order = torch.argsort(group, stable=True)
        decision: Decision = map_rows(concatenate_rows(drawn), lambda tensor: tensor[order])
        value, group = (torch.cat(reward) + self.settings.discount * expected)[order], group[order]
        number = torch.arange(len(value))
        return Rollout(
            observation=map_rows(concatenate_rows(seen), lambda tensor: tensor[order]),
            trace=decision.trace,
            logprobs=decision.logprobs,
            mask=decision.mask,
            values=decision.values,
            final_values=None if decision.values is None else torch.zeros(len(value)),
            rewards=value,
            trajectory=number,
            terminated=torch.ones(len(value), dtype=torch.bool),
            truncated=torch.zeros(len(value), dtype=torch.bool),
            group=group,
            version=base.version[:1].expand(len(value)).clone(),
            metrics={"branches": float(len(value)), "branched_states": float(group.max() + 1)},
            exact=decision.exact,
        )


def take_every(tensor: Tensor, first: int, count: int) -> Tensor:
    """Every `count`-th row from `first` on."""
    return tensor[first::count]


def discounted_returns(rollout: Rollout, discount: float) -> Float[Tensor, "R"]:
    """Reward-to-go of every decision, discounted per decision."""
    order = torch.argsort(rollout.trajectory, stable=True)
    rewards, trajectory = rollout.rewards[order].tolist(), rollout.trajectory[order].tolist()
    to_go = [0.0] * len(rewards)
    following = 0.0
    last = -1
    for row in range(len(rewards) - 1, -1, -1):
        following = rewards[row] + discount * (following if trajectory[row] == last else 0.0)
        to_go[row] = following
        last = trajectory[row]
    returns = torch.empty(len(rewards))
    returns[order] = torch.tensor(to_go)
    return returns
