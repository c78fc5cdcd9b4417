"""Every policy keeps the contract, and learns the identity task under every algorithm in seconds.

To add a policy: write a function that returns a `Task` and add it to `TASKS`.
"""

import dataclasses

import pytest
import torch
from torch import nn

from tests.rl.contract import Task, check_policy
from tests.rl.toys import (
    SETTINGS,
    GaussianPolicy,
    TokenPolicy,
    proprio_observation,
    text_observation,
)
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.algorithms import ALGORITHMS
from vla.rl.loop import LoopSettings, LoopState, train_rl
from vla.rl.rollout import collect_responses
from vla.rl.update import UpdateSettings


def gaussian() -> Task:
    """Say the number you are shown; the reward falls from 1 with the squared distance."""
    target = torch.linspace(-1, 1, 8).unsqueeze(1)

    def reward(decision, rows):
        return (1 - (decision.action[:, 0] - target[rows]).square().sum(1)).clamp(min=0)

    return Task(
        GaussianPolicy(), proprio_observation(target), reward, solved=0.9, learning_rate=0.1
    )


def tokens() -> Task:
    """Repeat a prompt of two words; the reward is the share of words that are right."""
    prompt = torch.tensor([[0, 1], [2, 3], [1, 2], [3, 0], [0, 2], [1, 3], [3, 3], [2, 0]])

    def reward(decision, rows):
        return (decision.action == prompt[rows]).float().mean(1)

    return Task(
        TokenPolicy(vocabulary=4), text_observation(prompt), reward, solved=0.9, learning_rate=0.2
    )


TASKS = {"gaussian": gaussian, "tokens": tokens}

LEARNING = {
    **SETTINGS,
    "gspo": {"clip_low": 0.1, "clip_high": 0.1},
    "ppo": {**SETTINGS["ppo"], "gamma": 1.0, "gae_lambda": 0.95},
    "dr_grpo": {**SETTINGS["dr_grpo"], "max_length": 2},
    "reinforce": {"gamma": 1.0, "along": "decision", "baseline": "mean"},
}


def learn(task: Task, name: str, iterations: int = 15) -> list[float]:
    """Mean reward of each iteration's rollout, sampled."""
    torch.manual_seed(0)
    curve = []

    def collect(iteration):
        return collect_responses(task.policy, task.observation, 8, task.reward, version=iteration)

    passes = 1 if name == "reinforce" else 2
    train_rl(
        task.policy,
        make_algorithm(name, **LEARNING[name]),
        collect,
        torch.optim.Adam(task.policy.parameters(), lr=task.learning_rate),
        UpdateSettings(epochs=passes, num_minibatches=1, micro_batch_rows=64, max_grad_norm=10.0),
        LoopSettings(num_iterations=iterations),
        LoopState(),
        on_iteration=lambda done, rollout, metrics: curve.append(metrics["return_mean"]),
    )
    return curve


@pytest.mark.parametrize("kind", TASKS)
def test_policy_keeps_the_contract(kind):
    check_policy(TASKS[kind]())


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("kind", TASKS)
def test_every_algorithm_teaches_every_policy_the_identity(kind, name):
    task = TASKS[kind]()
    curve = learn(task, name)
    assert curve[0] < 0.6
    assert max(curve[-5:]) > task.solved, curve


class Dropout(TokenPolicy):
    """Breaks the contract: it scores with dropout on."""

    def score(self, observation, trace):
        scores = super().score(observation, trace)
        return dataclasses.replace(
            scores, logprobs=nn.functional.dropout(scores.logprobs, 0.5, self.training)
        )


class Tempered(TokenPolicy):
    """Breaks the contract: it scores at another temperature than it draws at."""

    def score(self, observation, trace):
        scores = super().score(observation, trace)
        return dataclasses.replace(scores, logprobs=2.0 * scores.logprobs)


@pytest.mark.parametrize("broken", [Dropout, Tempered])
def test_the_contract_catches_what_others_shipped(broken):
    task = dataclasses.replace(tokens(), policy=broken(vocabulary=4))
    with pytest.raises(AssertionError, match="scored .* away from what was drawn"):
        check_policy(task)
