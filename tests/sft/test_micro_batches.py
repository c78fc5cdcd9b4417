"""Micro-batches of SFT give the gradients of the whole batch, for every head without noise."""

import pytest
import torch

from tests.policies.kinds import task_of
from vla.pipelines.robot.cotraining import AuxiliaryTask
from vla.pipelines.robot.imitation import ImitationBatch, cotraining_loss, split_batch
from vla.types import map_rows

KINDS = ("regression", "fast", "token_parallel", "token_autoregressive")


def whole_batch(kind):
    task, actions = task_of(kind)
    rows = torch.arange(7) % 4
    mask = torch.ones(7, actions.shape[1], dtype=torch.bool)
    mask[0], mask[3, 1], mask[5, 1] = False, False, False  # pieces of unequal weight
    seen = map_rows(task.observation, lambda tensor: tensor[rows])
    return task.policy, ImitationBatch(seen, actions[rows], mask, ("questions",))


def gradients_of(policy, batches):
    weight = next(policy.parameters())
    tasks = [
        AuxiliaryTask(0.5, lambda step: None, lambda part: (weight.square().sum(), {"x": 1.0}))
    ]
    policy.zero_grad()
    losses = []
    for batch in batches:
        loss, metrics = cotraining_loss(policy, batch, tasks)
        loss.backward()
        losses.append((float(loss.detach()), metrics))
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    return losses, found


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_give_the_gradients_of_the_batch(kind):
    policy, batch = whole_batch(kind)
    whole, expected = gradients_of(policy, [batch])
    pieces = split_batch(policy, batch, 2)
    assert [len(piece.actions) for piece in pieces] == [2, 2, 2, 1]
    parts, found = gradients_of(policy, pieces)
    assert sum(loss for loss, _ in parts) == pytest.approx(whole[0][0], rel=1e-5)
    assert sum(metrics.get("x", 0.0) for _, metrics in parts) == 1.0
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
