"""Every algorithm teaches every kind of policy from reward alone, after a little imitation, as a
run does.

The task is the identity: do (or say) what the instruction names. The scalar Gaussian and the
smallest token policy learn it from nothing in `tests/rl/test_contract.py`; here are the policies of
robots and text, as small as can be.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import pytest
import torch

from tests.policies.kinds import task_of
from tests.rl.contract import Task
from tests.rl.toys import SETTINGS
from vla.generation.sampling import Sampling
from vla.policies.text import TextPolicy
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.algorithms import ALGORITHMS
from vla.rl.critic import with_critic
from vla.rl.loop import LoopSettings, LoopState, train_rl
from vla.rl.rollout import collect_responses
from vla.rl.update import UpdateSettings
from vla.sft.losses import imitation_loss
from vla.text.tiny_language_model import tiny_language_model
from vla.training.optim import make_optimizer
from vla.types import Observation

LEARNING = {
    **SETTINGS,
    "gspo": {"clip_low": 0.1, "clip_high": 0.1},
    "ppo": {**SETTINGS["ppo"], "gamma": 1.0, "gae_lambda": 0.95},
    "dr_grpo": {**SETTINGS["dr_grpo"], "max_length": None},
    "reinforce": {"gamma": 1.0, "along": "decision", "baseline": "mean"},
    "ppo with a critic of its own": {**SETTINGS["ppo"], "gamma": 1.0, "gae_lambda": 0.95},
    "dppo": {
        **SETTINGS["ppo"],
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "clip_first_draw": 0.1,
        "draw_discount": 0.99,
    },
}
KINDS = {
    "token_parallel": 8,
    "fast": 8,
    "flow_all_steps": 20,
    "diffusion": 35,
    "regression": 15,
    "text": 3,
}
"""Steps of imitation before RL: enough that reward tells draws apart, and not enough to solve the
task."""

VARIANTS = [
    ("flow_one_step", "ppo"),
    ("flow_learned_noise", "ppo"),
    ("flow_matching", "grpo"),
    ("diffusion", "dppo"),
    ("regression", "ppo with a critic of its own"),
    ("text", "ppo with a critic of its own"),
    ("token_autoregressive", "grpo"),
]


def steps_of_imitation(kind: str) -> int:
    """Those of its family."""
    return next(
        number for name, number in KINDS.items() if kind.split("_")[0] == name.split("_")[0]
    )


def text_task() -> tuple[Task, torch.Tensor]:
    """A language model that is to repeat the last two of a prompt's three tokens, and the tokens
    themselves."""
    model, _ = tiny_language_model(
        ["repeat"], vocab_size=262, hidden_size=32, num_layers=1, weight_scale=0.2
    )
    prompt = torch.tensor([[9, 20 + i, 30 + i] for i in range(4)])
    policy = TextPolicy(model, Sampling(), 2, [2], 0, value_head=True)

    def reward(decision, rows):
        return (decision.action == prompt[rows, 1:]).float().mean(1)

    observation = Observation({}, None, prompt, torch.ones_like(prompt, dtype=torch.bool))
    return Task(policy, observation, reward, solved=0.7, learning_rate=0.01), prompt[:, 1:]


@lru_cache
def started(kind: str) -> Task:
    """The task of a kind, its policy a little trained on what is right."""
    task, right = text_task() if kind == "text" else task_of(kind)
    torch.manual_seed(0)
    optimizer = make_optimizer(task.policy, "muon", 0.01, 0.0, muon_learning_rate=0.02)
    mask = torch.ones(right.shape[:2], dtype=torch.bool)
    for _ in range(steps_of_imitation(kind)):
        optimizer.zero_grad()
        if kind == "text":
            loss = -task.policy.score(
                task.observation, {"tokens": right, "mask": mask}
            ).logprobs.mean()
        else:
            loss = imitation_loss(task.policy, task.observation, right, mask)
        loss.backward()
        optimizer.step()
    if kind != "text":
        task.policy.freeze_prefix()  # as a run does: traces carry the prefix
    return task


def learn(kind: str, name: str) -> tuple[list[float], list[float]]:
    """Mean reward of each iteration's rollout, and how far scores were from what was drawn, before
    any step of it."""
    task = started(kind)
    policy = with_critic(
        copy.deepcopy(task.policy), "separate" if "of its own" in name else "shared"
    )
    torch.manual_seed(0)
    curve, gaps = [], []

    def note(iteration, rollout, metrics):
        curve.append(metrics["return_mean"])
        gaps.append(metrics.get("logprob_gap_max", 0.0))

    train_rl(
        policy,
        make_algorithm("ppo" if "ppo" in name else name, **LEARNING[name]),
        lambda iteration: collect_responses(
            policy, task.observation, 16, task.reward, version=iteration
        ),
        make_optimizer(policy, "muon", task.learning_rate, 0.0, muon_learning_rate=0.01),
        UpdateSettings(
            epochs=1 if name == "reinforce" else 2,
            num_minibatches=1,
            micro_batch_rows=64,
            max_grad_norm=1,
        ),
        LoopSettings(num_iterations=10 if name == "reinforce" else 6),
        LoopState(),
        on_iteration=note,
    )
    return curve, gaps


@pytest.mark.parametrize(
    ("kind", "name"), [*((kind, name) for kind in KINDS for name in ALGORITHMS), *VARIANTS]
)
def test_reward_alone_makes_it_better(kind, name):
    curve, gaps = learn(kind, name)
    assert curve[0] < 0.75
    assert sum(curve[-3:]) / 3 > curve[0] + 0.08, curve
    assert max(gaps) < 1e-4
