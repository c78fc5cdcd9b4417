"""Our PPO beside stable-baselines3's: one task, the same environment steps, networks, settings and
seeds; both printed.

    PYTHONPATH=. python tests/rl/compare_sb3.py [--steps 100000] [--seeds 0 1 2]
    PYTHONPATH=. python tests/rl/compare_sb3.py --cart-pole      # our PPO and our GRPO until a pole stands; no peer

Pendulum-v1: an iteration is 20 whole episodes of 200 steps on both sides, 10 epochs of 20
minibatches of 200 rows, clip .2, gamma .9, lambda .95, Adam 1e-3, 64-64 tanh actor and critic,
gradient norm .5, value coefficient .5. What differs: they whiten advantages per minibatch, we over
the batch. Evaluation: 50 greedy episodes on starts nobody trained on. stable-baselines3 is not
among our dependencies: `pip install stable-baselines3` in an environment of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import gymnasium
import numpy as np
import torch
from control import BALANCING, Gymnasium, StatePolicy, balance, observe

from vla.rl.algorithm_factory import make_algorithm
from vla.rl.loop import LoopSettings, LoopState, train_rl
from vla.rl.rollout import collect_rollout
from vla.rl.update import UpdateSettings
from vla.types import Rollout

TASK, EPISODES, LENGTH = "Pendulum-v1", 20, 200
HELD_OUT = range(10_000_000, 10_000_050)
Act = Callable[[np.ndarray], np.ndarray]


def ours(seed: int, num_iterations: int) -> tuple[list[float], Act]:
    """Mean return of every iteration's episodes, and the greedy policy."""
    torch.manual_seed(seed)
    environment, policy, curve = (
        Gymnasium(TASK, EPISODES, LENGTH),
        StatePolicy(state=3, actions=1),
        [],
    )

    def collect(iteration: int) -> Rollout:
        first = seed * 10**6 + iteration * EPISODES
        return collect_rollout(
            policy, environment, range(first, first + EPISODES), 1, observe, version=iteration
        )

    train_rl(
        policy,
        make_algorithm(
            "ppo", clip_low=0.2, clip_high=0.2, gamma=0.9, gae_lambda=0.95, value_coefficient=0.5
        ),
        collect,
        torch.optim.Adam(policy.parameters(), lr=1e-3, eps=1e-5),
        UpdateSettings(epochs=10, num_minibatches=20, micro_batch_rows=10_000, max_grad_norm=0.5),
        LoopSettings(num_iterations=num_iterations),
        LoopState(torch.Generator().manual_seed(seed)),
        on_iteration=lambda i, rollout, metrics: curve.append(metrics["return_mean"]) or None,
    )
    environment.close()
    return curve, lambda state: policy.act(observe(state), greedy=True).action[:, 0].numpy()


def theirs(seed: int, num_iterations: int) -> tuple[list[float], Act]:
    """The same from stable-baselines3."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    curve: list[float] = []

    class Curve(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            curve.append(
                float(
                    np.mean(
                        [episode["r"] for episode in list(self.model.ep_info_buffer)[-EPISODES:]]
                    )
                )
            )

    model = PPO(
        "MlpPolicy",
        make_vec_env(TASK, EPISODES, seed=seed),
        n_steps=LENGTH,
        batch_size=EPISODES * LENGTH // 20,
        n_epochs=10,
        learning_rate=1e-3,
        gamma=0.9,
        gae_lambda=0.95,
        seed=seed,
        device="cpu",
    )
    model.learn(num_iterations * EPISODES * LENGTH, callback=Curve())
    return curve, lambda state: model.predict(state, deterministic=True)[0]


def evaluate(act: Act) -> tuple[float, float]:
    """Mean and standard error of the return over held-out starts."""
    returns = []
    for seed in HELD_OUT:
        with gymnasium.make(TASK) as task:
            state, total, over = task.reset(seed=seed)[0], 0.0, False
            while not over:
                state, reward, terminated, truncated, _ = task.step(
                    np.clip(act(state[None])[0], -2, 2)
                )
                total, over = total + float(reward), terminated or truncated
            returns.append(total)
    return float(np.mean(returns)), float(np.std(returns, ddof=1) / len(returns) ** 0.5)


def print_balancing(seeds: list[int]) -> None:
    """Mean return by control steps of PPO and GRPO on CartPole."""
    for name in BALANCING:
        for seed in seeds:
            start = time.process_time()
            curve = balance(name, seed)
            shown = "  ".join(f"{steps}: {value:.0f}" for steps, value in curve)
            print(
                f"{name:4} seed {seed}  {time.process_time() - start:4.0f} CPU-s  {shown}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cart-pole", action="store_true")
    given = parser.parse_args()
    if given.cart_pole:
        return print_balancing(given.seeds)
    num_iterations = given.steps // (EPISODES * LENGTH)
    for name, run in (("ours", ours), ("stable-baselines3", theirs)):
        finals = []
        for seed in given.seeds:
            start = time.process_time()
            curve, act = run(seed, num_iterations)
            spent = time.process_time() - start
            mean, error = evaluate(act)
            finals.append(mean)
            shown = " ".join(f"{value:.0f}" for value in curve[:: max(1, num_iterations // 8)])
            print(
                f"{name:18} seed {seed}  greedy {mean:8.1f} +- {error:.1f}  {spent:5.0f} CPU-s  "
                f"curve {shown}",
                flush=True,
            )
        print(f"{name:18} mean of {len(finals)} seeds {np.mean(finals):8.1f}", flush=True)


if __name__ == "__main__":
    main()
