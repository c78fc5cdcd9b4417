"""Probing: the head learns from stored features what it would learn through the model, and the
model stands still."""

import torch

from tests.models.tiny import tiny_observation
from tests.policies.test_token import tiny_policy
from vla.sft.head_pretraining import extract_features, train_head, train_head_only
from vla.sft.loop import SupervisedSettings


def demonstrated(policy):
    observation = tiny_observation([3] * 8)
    torch.manual_seed(0)
    actions = policy.act(observation).action
    return observation, actions, torch.ones(actions.shape[:2], dtype=torch.bool)


def test_the_head_learns_and_the_model_stands_still():
    policy = tiny_policy("parallel")
    observation, actions, mask = demonstrated(policy)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    features = extract_features(policy, iter([(observation, actions, mask)]))
    assert features.observation.images == {}
    losses = []
    settings = SupervisedSettings(
        num_steps=60, batch_size=8, learning_rate=1e-2, warmup_steps=6, max_grad_norm=1.0
    )
    train_head(policy, features, settings, lambda step, metrics: losses.append(metrics["loss"]))
    assert losses[-1] < 0.25 * losses[0]
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert not any(name.startswith("model.") or name == "head.head.queries" for name in changed)
    assert all(p.requires_grad for p in policy.parameters())
    # What was learned from features holds for pictures.
    terms, _ = policy.imitation_terms(observation, actions, mask)
    torch.testing.assert_close(terms.mean().detach(), torch.tensor(losses[-1]), rtol=0.2, atol=0.05)


def test_what_was_frozen_before_stays_frozen():
    policy = tiny_policy("parallel")
    policy.model.vision.requires_grad_(False)
    with train_head_only(policy):
        assert not any(p.requires_grad for p in policy.model.parameters())
        assert policy.head.head.mixer[0].weight.requires_grad
    assert not any(p.requires_grad for p in policy.model.vision.parameters())
    assert policy.head.head.queries.requires_grad
