"""Two smallest policies and the identity task: repeat the number you are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from vla.types import ActionScores, Decision, Observation, Rollout, Trace


def text_observation(tokens: Tensor) -> Observation:
    """An observation of words alone."""
    return Observation({}, None, tokens, torch.ones_like(tokens, dtype=torch.bool))


def proprio_observation(proprio: Tensor) -> Observation:
    """An observation of proprioception alone (no words, no images)."""
    empty = torch.zeros(len(proprio), 1, dtype=torch.long)
    return Observation({}, proprio, empty, torch.zeros_like(empty, dtype=torch.bool))


class GaussianPolicy(nn.Module):
    """Draws `L` numbers around a linear function of proprioception; one draw an action
    dimension."""

    def __init__(self, state: int = 1, actions: int = 1, critic: bool = True) -> None:
        super().__init__()
        self.mean = nn.Linear(state, actions)
        self.log_std = Parameter(torch.full((actions,), -0.5))
        self.critic = nn.Linear(state, 1) if critic else None
        nn.init.zeros_(self.mean.weight)
        nn.init.zeros_(self.mean.bias)

    def distribution(self, observation: Observation) -> torch.distributions.Normal:
        return torch.distributions.Normal(self.mean(self.state(observation)), self.log_std.exp())

    def state(self, observation: Observation) -> Tensor:
        assert observation.proprio is not None
        return observation.proprio.to(self.mean.weight.dtype)

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        normal = self.distribution(observation)
        draw = normal.mean if greedy else normal.sample()
        values = None if self.critic is None else self.value(observation)
        logprobs = normal.log_prob(draw)
        return Decision(
            draw.unsqueeze(1),
            {"draw": draw},
            logprobs,
            torch.ones_like(logprobs, dtype=torch.bool),
            values,
        )

    def score(self, observation: Observation, trace: Trace) -> ActionScores:
        normal = self.distribution(observation)
        values = None if self.critic is None else self.value(observation)
        return ActionScores(normal.log_prob(trace["draw"]), normal.entropy(), values)

    def value(self, observation: Observation) -> Tensor:
        assert self.critic is not None
        return self.critic(self.state(observation)).squeeze(1)

    def critic_parameters(self) -> Iterator[Parameter]:
        assert self.critic is not None
        return self.critic.parameters()


class Descent:
    """Plain gradient descent: the change of a parameter is its gradient times `lr`."""

    def __init__(self, parameters: Iterator[Parameter], lr: float = 1.0) -> None:
        self.parameters, self.lr = list(parameters), lr

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter -= self.lr * parameter.grad

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


class TokenPolicy(nn.Module):
    """Answers a prompt of `L` tokens with `L` tokens, from logits that see the token at its place;
    a value each."""

    def __init__(self, vocabulary: int = 5, critic: bool = True) -> None:
        super().__init__()
        self.logits = nn.Embedding(vocabulary, vocabulary)
        self.critic = nn.Embedding(vocabulary, 1) if critic else None
        nn.init.zeros_(self.logits.weight)
        if self.critic is not None:
            nn.init.zeros_(self.critic.weight)

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        categorical = torch.distributions.Categorical(logits=self.logits(observation.tokens))
        draw = categorical.logits.argmax(-1) if greedy else categorical.sample()
        values = None if self.critic is None else self.critic(observation.tokens).squeeze(-1)
        return Decision(
            draw, {"draw": draw}, categorical.log_prob(draw), observation.token_mask, values
        )

    def score(self, observation: Observation, trace: Trace) -> ActionScores:
        categorical = torch.distributions.Categorical(logits=self.logits(observation.tokens))
        values = None if self.critic is None else self.critic(observation.tokens).squeeze(-1)
        return ActionScores(categorical.log_prob(trace["draw"]), categorical.entropy(), values)

    def value(self, observation: Observation) -> Tensor:
        assert self.critic is not None
        return self.critic(observation.tokens).squeeze(-1)[:, -1]

    def critic_parameters(self) -> Iterator[Parameter]:
        assert self.critic is not None
        return self.critic.parameters()


def make_rollout(
    rewards: list[float],
    trajectory: list[int],
    group: list[int],
    *,
    mask: list[list[bool]] | None = None,
    num_draws: int = 2,
    terminated: list[bool] | None = None,
    values: Tensor | None = None,
    final_values: list[float] | None = None,
    seed: int = 0,
) -> Rollout:
    """A rollout with these rewards and made-up draws of a Gaussian policy with one state value."""
    generator = torch.Generator().manual_seed(seed)
    num_rows = len(rewards)
    num_draws = len(mask[0]) if mask else num_draws
    ended = torch.tensor(terminated if terminated is not None else [True] * len(group))
    return Rollout(
        observation=proprio_observation(torch.randn(num_rows, 1, generator=generator)),
        trace={"draw": torch.randn(num_rows, num_draws, generator=generator)},
        logprobs=-torch.rand(num_rows, num_draws, generator=generator) - 0.5,
        mask=torch.tensor(mask) if mask else torch.ones(num_rows, num_draws, dtype=torch.bool),
        rewards=torch.tensor(rewards),
        trajectory=torch.tensor(trajectory),
        terminated=ended,
        truncated=~ended,
        group=torch.tensor(group),
        version=torch.zeros(num_rows, dtype=torch.long),
        values=values,
        final_values=None if final_values is None else torch.tensor(final_values),
    )


def gaussian_rollout(
    policy: GaussianPolicy, rewards: list[float] | None = None, seed: int = 0, critic: bool = True
) -> Rollout:
    """Eight trajectories of two groups, one to three rows each, drawn by the policy itself, moved a
    little since."""
    generator = torch.Generator().manual_seed(seed)
    trajectory = [0, 1, 1, 2, 3, 3, 3, 4, 5, 6, 6, 7]
    rollout = make_rollout(
        rewards or torch.rand(12, generator=generator).tolist(),
        trajectory,
        [0, 0, 0, 0, 1, 1, 1, 1],
        num_draws=1,
    )
    scores = policy.score(rollout.observation, rollout.trace)
    values = (
        {"values": scores.values.detach().float(), "final_values": torch.zeros(8)} if critic else {}
    )
    noise = 0.1 * torch.randn(12, 1, generator=generator)
    return dataclasses.replace(
        rollout, logprobs=(scores.logprobs.detach() + noise).float(), **values
    )


# One working setting of every algorithm.
SETTINGS = {
    "ppo": {
        "clip_low": 0.2,
        "clip_high": 0.2,
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "value_coefficient": 0.5,
    },
    "grpo": {"clip_low": 0.2, "clip_high": 0.28},
    "dr_grpo": {"clip_low": 0.2, "clip_high": 0.28, "max_length": 4},
    "dapo": {"clip_low": 0.2, "clip_high": 0.28},
    "gspo": {"clip_low": 0.2, "clip_high": 0.2},
    "cispo": {"clip_low": 1.0, "clip_high": 0.28},
    "rloo": {"clip_low": 0.2, "clip_high": 0.2},
    "maxrl": {"clip_low": 0.2, "clip_high": 0.28},
    "reinforce": {"gamma": 1.0, "along": "decision"},
    "reinforce_plus_plus": {"clip_low": 0.2, "clip_high": 0.28, "gamma": 1.0, "along": "draw"},
}
