"""Small control tasks from state, as the core sees any robot: gymnasium behind our vector
environment, and an MLP policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from vla.rl.algorithm_factory import make_algorithm
from vla.rl.loop import LoopSettings, LoopState, train_rl
from vla.rl.rollout import collect_rollout
from vla.rl.update import UpdateSettings
from vla.types import ActionScores, Decision, Observation, Trace


@dataclass(frozen=True)
class StepResult:
    """Rows of what one chunk of one action did."""

    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray
    num_steps: np.ndarray
    metrics: dict[str, np.ndarray] = field(default_factory=dict)


class Gymnasium:
    """`num_envs` copies of a gymnasium task, stepped one by one. Success is to be running when time
    is up."""

    def __init__(self, task: str, num_envs: int, max_steps: int) -> None:
        self.num_envs = num_envs
        self.copies = [gymnasium.make(task, max_episode_steps=max_steps) for _ in range(num_envs)]
        self.discrete = isinstance(self.copies[0].action_space, gymnasium.spaces.Discrete)

    def reset(self, seeds: Sequence[int], ids: np.ndarray | None = None) -> np.ndarray:
        ids = np.arange(self.num_envs) if ids is None else ids
        return np.stack(
            [self.copies[i].reset(seed=int(seed))[0] for i, seed in zip(ids, seeds, strict=True)]
        )

    def step(self, actions: np.ndarray, ids: np.ndarray | None = None) -> StepResult:
        ids = np.arange(self.num_envs) if ids is None else ids
        chosen = [int(a[0, 0]) if self.discrete else np.clip(a[0], -2.0, 2.0) for a in actions]
        steps = [self.copies[i].step(action)[:4] for i, action in zip(ids, chosen, strict=True)]
        observation, reward, terminated, truncated = (
            np.array(column) for column in zip(*steps, strict=True)
        )
        alive = truncated & ~terminated
        return StepResult(
            observation, reward, terminated, truncated, alive, np.ones(len(ids), dtype=int)
        )

    def close(self) -> None:
        for copy in self.copies:
            copy.close()


def observe(state: np.ndarray) -> Observation:
    """State as proprioception."""
    empty = torch.zeros(len(state), 1, dtype=torch.long)
    return Observation(
        {}, torch.as_tensor(state, dtype=torch.float32), empty, torch.zeros_like(empty).bool()
    )


def mlp(num_inputs: int, num_outputs: int, gain: float) -> nn.Sequential:
    """64-64 tanh with orthogonal weights, as stable-baselines3 has it."""
    layers = [nn.Linear(num_inputs, 64), nn.Linear(64, 64), nn.Linear(64, num_outputs)]
    for layer, scale in zip(layers, (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class StatePolicy(nn.Module):
    """An actor and a critic from state: a Gaussian for each of `actions` dimensions, or one choice
    among `choices`."""

    def __init__(self, state: int, actions: int = 0, choices: int = 0, critic: bool = True) -> None:
        super().__init__()
        self.actor = mlp(state, actions or choices, 0.01)
        self.log_std = Parameter(torch.zeros(actions)) if actions else None
        self.critic = mlp(state, 1, 1.0) if critic else None

    def distribution(self, observation: Observation) -> Any:
        output = self.actor(observation.proprio)
        if self.log_std is None:
            return torch.distributions.Categorical(logits=output.unsqueeze(1), validate_args=False)
        return torch.distributions.Normal(output, self.log_std.exp(), validate_args=False)

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        distribution = self.distribution(observation)
        draw = distribution.mode if greedy else distribution.sample()
        logprobs = distribution.log_prob(draw)
        action = draw.float().unsqueeze(1)
        mask = torch.ones_like(logprobs, dtype=torch.bool)
        values = None if self.critic is None else self.value(observation)
        return Decision(action, {"draw": draw}, logprobs, mask, values)

    def score(self, observation: Observation, trace: Trace) -> ActionScores:
        distribution = self.distribution(observation)
        values = None if self.critic is None else self.value(observation)
        return ActionScores(distribution.log_prob(trace["draw"]), distribution.entropy(), values)

    def value(self, observation: Observation) -> Tensor:
        assert self.critic is not None
        return self.critic(observation.proprio).squeeze(1)

    def critic_parameters(self) -> Iterator[Parameter]:
        assert self.critic is not None
        return self.critic.parameters()


@dataclass(frozen=True)
class Balancing:
    """How an algorithm learns CartPole: its settings, the rollout of an iteration, how the
    optimizer moves."""

    settings: dict[str, Any]
    starts: int
    group_size: int
    num_minibatches: int
    learning_rate: float


BALANCING = {
    "ppo": Balancing(
        {
            "clip_low": 0.2,
            "clip_high": 0.2,
            "gamma": 0.98,
            "gae_lambda": 0.9,
            "value_coefficient": 0.5,
        },
        starts=16,
        group_size=1,
        num_minibatches=8,
        learning_rate=2e-3,
    ),
    "grpo": Balancing(
        {"clip_low": 0.2, "clip_high": 0.2, "reduction": "token"},
        starts=4,
        group_size=8,
        num_minibatches=4,
        learning_rate=1e-2,
    ),
}


def balance(
    name: str, seed: int, enough: float = 150.0, num_iterations: int = 15
) -> list[tuple[int, float]]:
    """(control steps so far, mean return) of each iteration, until a pole stands `enough` of at
    most 200 steps."""
    torch.manual_seed(seed)
    how = BALANCING[name]
    environment = Gymnasium("CartPole-v1", how.starts * how.group_size, max_steps=200)
    policy = StatePolicy(state=4, choices=2, critic=name == "ppo")
    curve: list[tuple[int, float]] = []

    def collect(iteration: int) -> Any:
        first = seed * 1_000_000 + iteration * 1000
        seeds = range(first, first + how.starts)
        return collect_rollout(
            policy, environment, seeds, how.group_size, observe, version=iteration
        )

    def until_it_stands(iteration: int, rollout: Any, metrics: dict[str, float]) -> bool:
        so_far = curve[-1][0] if curve else 0
        curve.append((so_far + int(metrics["control_steps"]), metrics["return_mean"]))
        return curve[-1][1] > enough

    train_rl(
        policy,
        make_algorithm(name, **how.settings),
        collect,
        torch.optim.Adam(policy.parameters(), lr=how.learning_rate, eps=1e-5),
        UpdateSettings(
            epochs=8,
            num_minibatches=how.num_minibatches,
            micro_batch_rows=10_000,
            max_grad_norm=0.5,
        ),
        LoopSettings(num_iterations=num_iterations),
        LoopState(),
        on_iteration=until_it_stands,
    )
    environment.close()
    return curve
