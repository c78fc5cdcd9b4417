"""Rollouts that are collected one update ahead: the lag is counted and corrected, and the policy
learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.rl.test_rollout import Result, observe
from tests.rl.toys import GaussianPolicy
from vla.config import ConfigError, load
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.loop import LoopSettings, LoopState, train_rl
from vla.rl.update import UpdateSettings
from vla.training.resumable_work import ResumableWork
from vla.training.rollout_collection import RolloutCollector, SeededStarts
from vla.training.rollout_shards import InProcessPool, RolloutWorkers, ShardCollector

NUM_ITERATIONS = 40


class Echo:
    """One decision an episode: say the number that is shown, one of -1, -0.5, 0, 0.5, 1."""

    num_envs = 16

    def __init__(self):
        self.shown = np.zeros((self.num_envs, 1), np.float32)

    def reset(self, seeds, ids=None):
        self.shown[ids, 0] = np.array(seeds) % 5 / 2 - 1
        return self.shown[ids]

    def step(self, actions, ids=None):
        miss = np.square(actions[:, 0] - self.shown[ids]).sum(1)
        yes = np.ones(len(ids), bool)
        return Result(self.shown[ids], -miss, yes, ~yes, miss < 0.1, np.ones(len(ids)))


class Pieces(ResumableWork):
    """Keeps nothing."""

    def __init__(self):
        pass

    def next_rollout(self, make):
        return make()

    def load(self):
        return None

    def save_if_due(self, state):
        pass


def learned(num_ahead: int, cap: float | None) -> tuple[list[dict], GaussianPolicy]:
    """The metrics of every iteration, and the policy after the last."""
    torch.manual_seed(0)
    policy = GaussianPolicy(critic=False)
    worker = GaussianPolicy(critic=False)
    pool = InProcessPool(ShardCollector(worker, Echo(), observe, 8))
    workers = RolloutWorkers(lambda: pool, policy, {}, 2, 0)
    collector = RolloutCollector(
        policy,
        Echo(),
        observe,
        SeededStarts(0, 1000, 0).draw,
        lambda: 10,
        8,
        workers=workers,
        num_async_iterations=num_ahead,
    )
    metrics: list[dict] = []
    train_rl(
        policy,
        make_algorithm(**load(["algorithm=dr_grpo"]).algorithm.model_dump()),
        lambda iteration: collector.collect(iteration, Pieces()),
        torch.optim.Adam(policy.parameters(), 0.05),
        UpdateSettings(epochs=1, num_minibatches=1, micro_batch_rows=80, importance_cap=cap),
        LoopSettings(NUM_ITERATIONS),
        LoopState(),
        on_iteration=lambda iteration, rollout, numbers: metrics.append(numbers) and None,
    )
    return metrics, policy


def test_the_lag_is_counted_and_corrected_and_the_policy_learns():
    ahead, policy = learned(NUM_ITERATIONS, 2.0)
    in_step, _ = learned(0, None)
    assert [numbers["policy_lag"] for numbers in ahead] == [0.0] + [1.0] * (NUM_ITERATIONS - 1)
    assert {numbers["policy_lag"] for numbers in in_step} == {0.0}
    # Weights of truncated importance sampling differ from 1 exactly where the policy has moved on.
    assert ahead[0]["importance_weight_mean"] == pytest.approx(1, abs=1e-6)
    assert any(abs(numbers["importance_weight_mean"] - 1) > 1e-3 for numbers in ahead[1:])
    first, last = ahead[0]["return_mean"], np.mean([n["return_mean"] for n in ahead[-5:]])
    assert last > 0.5 * first
    shown = torch.tensor([[-1.0], [0.0], [1.0]])
    assert (policy.mean(shown) - shown).abs().max() < 0.4


def test_it_needs_a_correction_and_workers():
    with pytest.raises(ConfigError, match=r"rl.importance_cap \(null\) must correct for"):
        load(["rl.workers=2", "rl.worker_resources.CPU=0.5", "rl.async_rollouts=1"])
    load(
        [
            "rl.workers=2",
            "rl.worker_resources.CPU=0.5",
            "rl.async_rollouts=1",
            "rl.importance_cap=2",
        ]
    )
    with pytest.raises(ConfigError, match=r"rl.async_rollouts=1 has no effect: rl.workers is 0"):
        load(["rl.async_rollouts=1", "rl.importance_cap=2"])
