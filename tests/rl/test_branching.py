"""Branches: states put back exactly, groups of draws from one state, a critic at the end of the
first step."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from tests.rl.toys import GaussianPolicy, proprio_observation
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.branching import BranchCollector, BranchSettings, discounted_returns
from vla.rl.rollout import collect_rollout
from vla.rl.state_critic import StateCritic
from vla.rl.trust_region import step_to_kl
from vla.rl.update import UpdateSettings, update
from vla.types import map_rows


@dataclass
class Result:
    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray
    num_steps: np.ndarray
    metrics: dict = field(default_factory=dict)


class Line:
    """A point on a line: an action moves it, an episode of 3 chunks pays -|x - 1| at its end
    alone."""

    num_envs, length = 8, 3

    def __init__(self):
        self.x, self.time, self.looks = (
            np.zeros(self.num_envs),
            np.zeros(self.num_envs, dtype=int),
            0,
        )

    def observe(self, ids):
        self.looks += 1
        return self.x[ids, None].astype(np.float32)

    def reset(self, seeds, ids=None):
        self.x[ids], self.time[ids] = [seed / 10 for seed in seeds], 0
        return self.observe(ids)

    def step(self, actions, ids=None, *, render=True):
        self.x[ids] += actions[:, 0, 0]
        self.time[ids] += 1
        ended = self.time[ids] >= self.length
        reward = np.where(ended, -np.abs(self.x[ids] - 1), 0.0)
        none = np.zeros(len(ids), dtype=bool)
        seen = self.observe(ids) if render else None
        return Result(seen, reward, none, ended, none, np.ones(len(ids)))

    def get_state(self, ids):
        return self.x[ids].copy(), self.time[ids].copy()

    def set_state(self, state, ids):
        self.x[ids], self.time[ids] = state

    def privileged(self, ids):
        return np.stack([self.x[ids], self.time[ids] / self.length], 1).astype(np.float32)


class Redrawing(GaussianPolicy):
    can_redraw = True

    def redraw(self, observation, trace, count):
        return self.act(map_rows(observation, lambda tensor: tensor.repeat_interleave(count, 0)))


def observe(seen):
    return proprio_observation(torch.from_numpy(seen))


def collect(branches, policy, environment, iteration=0):
    branches.start(iteration)
    return collect_rollout(
        policy, environment, list(range(16)), 1, observe, before_step=branches.before_step
    )


@pytest.fixture
def made(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("vla.rl.branching.LATER_FIT", 20)
    environment, policy = Line(), Redrawing(1, 1)
    critic = StateCritic(0)
    return (
        BranchCollector(policy, environment, BranchSettings(4, 0.5, 0.9), critic, 0),
        policy,
        environment,
        critic,
    )


def test_trying_draws_leaves_the_episodes_as_they_would_have_been_and_looks_no_more(made):
    branches, policy, environment, critic = made
    first = collect(branches, policy, environment)
    assert branches.rollout(first) is None  # nothing is tried before the critic knows something
    critic.fit(20)
    looks = environment.looks
    base = collect(branches, policy, environment)
    assert environment.looks - looks == 2 * (
        1 + 3
    )  # a reset and three chunks for eight places, twice
    assert branches.rollout(base) is not None
    for trajectory in range(
        16
    ):  # where an episode ends is where its own actions lead, whatever was tried beside it
        rows = (base.trajectory == trajectory).nonzero().squeeze(1)
        end = trajectory / 10 + float(base.action[rows].sum())
        assert float(base.rewards[rows[-1]]) == pytest.approx(-abs(end - 1), abs=1e-5)


def test_a_branch_is_worth_what_it_earned_and_what_the_critic_expects(made):
    branches, policy, environment, critic = made
    branches.rollout(collect(branches, policy, environment))
    critic.fit(200)
    base = collect(branches, policy, environment)
    tried = branches._tried
    found = branches.rollout(base)
    rows = torch.cat([part[0] for part in tried])
    assert found.num_trajectories == len(rows) == 4 * len(torch.unique(rows))
    assert torch.equal(torch.bincount(found.group), torch.full((len(torch.unique(rows)),), 4))
    assert torch.equal(
        found.group, found.group.sort().values
    )  # draws from one state stand together
    order = torch.argsort(rows, stable=True)
    ended = torch.cat([part[5] for part in tried])[order]
    assert ended.any()
    assert not ended.all()
    # At the end of an episode nothing is expected any more: a branch is worth its reward, -|x - 1|
    # of where it led.
    after = torch.cat([part[4] for part in tried])[order]
    torch.testing.assert_close(
        found.rewards[ended], -(after[ended, 0] - 1).abs(), rtol=1e-5, atol=1e-6
    )
    assert -1 < branches.fit["critic_explained_variance"] < 1


def test_returns_are_discounted_along_each_trajectory(made):
    branches, policy, environment, _ = made
    rollout = collect(branches, policy, environment)
    returns = discounted_returns(rollout, 0.5)
    for trajectory in range(16):
        rows = (rollout.trajectory == trajectory).nonzero().squeeze(1)
        last = rollout.rewards[rows[-1]]
        torch.testing.assert_close(returns[rows], torch.stack([last / 4, last / 2, last]))


@pytest.mark.parametrize("name", ["dr_grpo", "rloo"])
def test_branches_teach_to_reach_a_point(made, name):
    branches, policy, environment, critic = made
    algorithm = make_algorithm(name, **SETTINGS[name])
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3, momentum=0.7)
    settings = UpdateSettings(1, 1, 512, target_step_kl=0.1)
    for iteration in range(2):
        branches.rollout(collect(branches, policy, environment, iteration))
    critic.fit(200)
    returns = []
    for iteration in range(12):
        base = collect(branches, policy, environment, iteration)
        returns.append(float(base.returns.mean()))
        metrics = update(
            policy,
            algorithm,
            branches.rollout(base),
            optimizer,
            settings,
            generator=torch.Generator().manual_seed(0),
        )
        assert metrics["step_kl"] == pytest.approx(0.1, rel=0.2)
    assert np.mean(returns[-3:]) > np.mean(returns[:3]) + 0.2


SETTINGS = {
    "dr_grpo": {"clip_low": 0.2, "clip_high": 0.2, "max_length": None, "entropy_coefficient": 0.0},
    "rloo": {"clip_low": 0.2, "clip_high": 0.2, "kl_coefficient": 0.0, "entropy_coefficient": 0.0},
}


def test_a_critic_goes_on_exactly_from_its_state():
    states, returns = torch.randn(400, 3), torch.randn(400)
    whole, first = StateCritic(1), StateCritic(1)
    for critic in (whole, first):
        critic.remember(states, returns)
        critic.fit(5)
    second = StateCritic(99)
    second.load_state_dict(first.state_dict())
    whole.fit(5)
    second.fit(5)
    torch.testing.assert_close(second(states), whole(states), rtol=0, atol=0)


def test_a_critic_learns_what_returns_depend_on_and_says_nothing_where_they_never_differ():
    torch.manual_seed(0)
    states = torch.randn(2000, 2)
    critic = StateCritic(0)
    critic.remember(states, states[:, 0] + 0.1 * torch.randn(2000))
    critic.fit(300)
    assert float((critic(states) - states[:, 0]).square().mean()) < 0.1
    idle = StateCritic(0)
    idle.remember(states, torch.zeros(2000))
    idle.fit(5)
    assert torch.equal(idle(states), torch.zeros(2000))


@pytest.mark.parametrize("rate", [1e-4, 1.0])
def test_a_step_is_as_long_as_it_is_asked_to_be(rate):
    # KL of N(theta, 1) from N(0, 1) is theta^2 / 2: .02 is a step of .2, against the gradient.
    theta = torch.nn.Parameter(torch.zeros(1))
    theta.grad = torch.ones(1)
    found = step_to_kl(
        torch.optim.SGD([theta], lr=rate),
        [theta],
        0.02,
        lambda: float(theta.detach().square().sum() / 2),
    )
    assert float(theta.detach()) == pytest.approx(-0.2, rel=0.1)
    assert found["step_kl"] == pytest.approx(0.02, rel=0.16)
