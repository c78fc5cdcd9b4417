"""Branches: from the states an episode comes through, several decisions are tried in the simulator
and compared.

A trajectory's reward says little about any one of its decisions. A simulator that can be put back
into an exact state says more: from one state it executes `num_branches` draws of the policy for one
chunk each, and every draw is scored by what it earned and by what a critic expects from the state
it led to. Draws from one state are a group, a branch is a trajectory of one decision, so every
algorithm that compares within groups (GRPO, Dr. GRPO, RLOO, ...) learns from them as they are. It
is the vine of TRPO (Schulman et al. 2015, section 5.2) and VinePPO (Kazemnejad et al. 2024) with a
critic at the end of the first step in place of whole rollouts; no branch is rendered, because
nobody looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vla.rl.protocols import Policy, StepResult, VectorEnvironment
from vla.rl.state_critic import StateCritic
from vla.types import Decision, Observation, Rollout, Trace, concatenate_rows, map_rows

FIRST_FIT, LATER_FIT = 1200, 120
"""Optimizer steps of the critic before the first branches, and after every rollout."""


@runtime_checkable
class BranchingEnvironment(VectorEnvironment, Protocol):
    """An environment whose exact state can be taken and put back, and that tells a critic what a
    policy cannot see."""

    def get_state(self, ids: np.ndarray) -> Any: ...

    def set_state(self, state: Any, ids: np.ndarray) -> None: ...

    def privileged(self, ids: np.ndarray) -> np.ndarray: ...

    def step(
        self, actions: np.ndarray, ids: np.ndarray | None = None, *, render: bool = True
    ) -> StepResult: ...


@runtime_checkable
class ResamplingPolicy(Policy, Protocol):
    """A policy that draws again from what it has perceived, without looking again."""

    @property
    def can_redraw(self) -> bool:
        """Whether traces carry what was perceived."""
        ...

    def redraw(self, observation: Observation, trace: Trace, count: int) -> Decision:
        """`count` decisions for every row, those of a row one after another; their traces carry
        what was perceived."""
        ...


@dataclass(frozen=True)
class BranchSettings:
    """`num_branches` draws from a share `share` of the states; `check_discount` of what follows a
    decision."""

    num_branches: int
    share: float
    discount: float


class BranchCollector:
    """Branches of the rollout that is being collected: `before_step` is called with every decision
    before it is executed, `rollout` turns what was tried into a rollout to learn from. `gather`
    gives what all processes have: the critic learns from all of it, in every process alike. `fit`
    says how well it foresaw the last rollout.
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
        self.policy, self.environment, self.settings = policy, environment, settings
        self.critic, self.seed, self.gather = critic, seed, gather
        self.fit: dict[str, float] = {}
        self.start(0)

    def start(self, iteration: int) -> None:
        """Forget what was tried; which states are tried follows from the seed and the iteration."""
        self._rng = np.random.default_rng([self.seed, iteration])
        self._num_rows = 0
        self._states: list[Tensor] = []
        self._tried: list[tuple[Tensor, Observation, Decision, Tensor, Tensor, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        """What was noted and tried since `start`."""
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

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._num_rows, self._states = state["num_rows"], list(state["states"])
        self._tried = [
            (row, Observation(**seen), Decision(**drawn), *rest)
            for row, seen, drawn, *rest in state["tried"]
        ]

    def before_step(self, observation: Observation, decision: Decision, ids: np.ndarray) -> None:
        """Note the states, and try some draws from some of them."""
        self._states.append(torch.from_numpy(self.environment.privileged(ids)))
        row, self._num_rows = self._num_rows, self._num_rows + len(ids)
        if not self.critic.ready:
            return
        chosen = np.flatnonzero(self._rng.random(len(ids)) < self.settings.share)
        if len(chosen):
            self._try(observation, decision.trace, torch.from_numpy(chosen), ids[chosen], row)

    def rollout(self, base: Rollout) -> Rollout | None:
        """The branches of `base`, the rollout just collected, which the critic learns from
        afterwards.

        None when nothing was tried: the critic had to be fitted first.
        """
        branches = self._assembled(base) if self._tried else None
        seen = self.gather(
            (torch.cat(self._states), discounted_returns(base, self.settings.discount))
        )
        states, returns = (torch.cat(parts) for parts in zip(*seen, strict=True))
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
        """Draws from some rows, each executed from its row's state, which is put back in the
        end."""
        count = self.settings.num_branches
        seen = map_rows(replace(observation, images={}), lambda tensor: tensor[chosen])
        draws = self.policy.redraw(seen, map_rows(trace, lambda tensor: tensor[chosen]), count)
        actions = draws.action.float().cpu().numpy()
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
        """One trajectory a branch: its reward is what the chunk earned plus what the critic expects
        afterwards. Those of a state stand together, so that they are scored together.
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
            observation=map_rows(concatenate_rows(seen), lambda tensor: tensor.cpu()[order]),
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
    return tensor[first::count].cpu()


def discounted_returns(rollout: Rollout, discount: float) -> Float[Tensor, "R"]:
    """Reward to go of every decision, discounted decision by decision."""
    order = torch.argsort(rollout.trajectory, stable=True)
    rewards, trajectory = rollout.rewards[order].tolist(), rollout.trajectory[order].tolist()
    found, following, last = [0.0] * len(rewards), 0.0, -1
    for row in range(len(rewards) - 1, -1, -1):
        following = rewards[row] + discount * (following if trajectory[row] == last else 0.0)
        found[row], last = following, trajectory[row]
    returns = torch.empty(len(rewards))
    returns[order] = torch.tensor(found)
    return returns
