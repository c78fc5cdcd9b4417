"""A policy that denoises learns to do what it is told by imitation."""

import torch

from tests.policies.kinds import task_of
from vla.sft.loop import SupervisedSettings, SupervisedTrainer
from vla.sft.losses import imitation_loss
from vla.types import map_rows


def mean_reward(task, *, greedy):
    rows = torch.arange(4).repeat(8)
    decision = task.policy.act(map_rows(task.observation, lambda t: t[rows]), greedy=greedy)
    return float(task.reward(decision, rows).mean())


def imitate(task, actions, num_steps):
    mask = torch.ones(actions.shape[:2], dtype=torch.bool)
    rows = torch.arange(4).repeat(4)
    observation = map_rows(task.observation, lambda t: t[rows])
    losses = []
    settings = SupervisedSettings(
        num_steps=num_steps,
        batch_size=len(rows),
        optimizer="muon",
        learning_rate=0.01,
        muon_learning_rate=0.02,
        warmup_steps=round(0.1 * num_steps),
        max_grad_norm=1.0,
    )
    SupervisedTrainer(task.policy, settings).train(
        lambda step: [None],
        lambda batch: (imitation_loss(task.policy, observation, actions[rows], mask[rows]), {}),
        lambda step, metrics: losses.append(metrics["loss"]),
    )
    return losses


def test_flow_matching_by_imitation():
    task, actions = task_of("flow_one_step")
    torch.manual_seed(0)
    assert mean_reward(task, greedy=True) < 0.5
    losses = imitate(task, actions, 80)
    assert losses[-1] < losses[0] / 4
    assert mean_reward(task, greedy=True) > 0.8
    assert mean_reward(task, greedy=False) > 0.65
