"""PPO and GRPO solve a small control task from state, through the same rollout that a robot
takes."""

import pytest

from tests.rl.control import BALANCING, balance


@pytest.mark.parametrize("name", BALANCING)
def test_cart_pole_is_balanced(name):
    """A pole that random actions drop after 20 steps stands for 150 of 200 (SB3's PPO needs as many
    episodes)."""
    curve = [mean_return for _, mean_return in balance(name, seed=1)]
    assert curve[0] < 40
    assert curve[-1] > 150, curve
