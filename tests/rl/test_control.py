"""PPO and GRPO solve a small control task from state, through the same rollout that a robot takes."""

import pytest
import torch

from tests.rl.control import Gymnasium, StatePolicy, observe
from vla.rl.catalogue import make_algorithm
from vla.rl.loop import LoopSettings, LoopState, train
from vla.rl.rollout import collect_rollout
from vla.rl.update import UpdateSettings

PPO = {"clip_low": 0.2, "clip_high": 0.2, "gamma": 0.98, "gae_lambda": 0.9, "value_coefficient": 0.5}
GRPO = {"clip_low": 0.2, "clip_high": 0.2, "reduction": "token"}


@pytest.mark.parametrize(
    ("name", "settings", "starts", "group_size", "learning_rate"),
    [("ppo", PPO, 16, 1, 2e-3), ("grpo", GRPO, 4, 8, 1e-2)],
)
def test_cart_pole_is_balanced(name, settings, starts, group_size, learning_rate):
    """A pole that random actions drop after 20 steps stands for 150 of 200 (SB3's PPO needs as many episodes)."""
    torch.manual_seed(1)
    environment = Gymnasium("CartPole-v1", starts * group_size, max_steps=200)
    policy = StatePolicy(state=4, choices=2, critic=name == "ppo")
    curve = []

    def collect(iteration):
        seeds = [1_000_000 + iteration * 1000 + k for k in range(starts)]
        return collect_rollout(policy, environment, seeds, group_size, observe, version=iteration)

    def until_it_stands(iteration, rollout, metrics):
        curve.append(metrics["return_mean"])
        return curve[-1] > 150

    train(
        policy,
        make_algorithm(name, **settings),
        collect,
        torch.optim.Adam(policy.parameters(), lr=learning_rate, eps=1e-5),
        UpdateSettings(epochs=8, num_minibatches=8 if name == "ppo" else 4, micro_batch_rows=10_000, max_grad_norm=0.5),
        LoopSettings(num_iterations=15),
        LoopState(),
        on_iteration=until_it_stands,
    )
    environment.close()
    assert curve[0] < 40
    assert curve[-1] > 150, curve
