"""Which tokens carry loss: control steps that count, and answers, each predicted from what stands
before it."""

import math

import pytest
import torch

from tests.models.tiny import tiny_observation, tiny_vlm
from tests.policies.tiny import DECODINGS, tiny_policy
from vla.sft.losses import answer_loss, imitation_loss, plan_loss


def gradients(loss, module):
    named = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None
    }


@pytest.mark.parametrize("decoding", DECODINGS)
def test_imitation_is_the_mean_over_the_steps_that_count(decoding):
    policy, observation = tiny_policy(decoding), tiny_observation([3, 2])
    actions = torch.randn(2, 2, 4)
    mask = torch.tensor([[True, False], [True, True]])
    logprobs = -policy.imitation_terms(observation, actions, mask)[0]
    # Three of four control steps count, each with three ids.
    by_hand = -(logprobs[0, :3].sum() + logprobs[1].sum()) / 9
    torch.testing.assert_close(imitation_loss(policy, observation, actions, mask), by_hand)
    none = imitation_loss(policy, observation, actions, torch.zeros(2, 2, dtype=torch.bool))
    assert none.item() == 0.0


def test_perturbed_steps_and_those_past_the_end_carry_no_gradient():
    """Whatever stands in a masked control step, the loss and every gradient are the same, bit for
    bit."""
    policy, observation = tiny_policy("parallel"), tiny_observation([3, 2])
    mask = torch.tensor([[True, False], [False, True]])
    actions = torch.randn(2, 2, 4)
    other = torch.where(mask[..., None], actions, -5 * actions)
    losses = [imitation_loss(policy, observation, a, mask) for a in (actions, other)]
    assert (policy.head.bins.encode(actions) != policy.head.bins.encode(other)).any()
    assert torch.equal(*losses)
    first, second = (gradients(loss, policy) for loss in losses)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(gradient.any() for gradient in first.values())


def test_answers_are_predicted_from_the_token_before():
    model, observation = tiny_vlm(), tiny_observation([6, 6])
    answers = torch.zeros(2, 6, dtype=torch.bool)
    answers[0, 2] = answers[0, 5] = answers[1, 4] = True
    segments = torch.tensor([[0, 0, 0, 1, 1, 1], [0] * 6])
    prefix = model.prefix(observation)
    hidden, _ = model(prefix, observation.tokens, observation.token_mask, segments=segments)
    logprobs = model.backbone.logits(hidden).log_softmax(-1)
    places = [(0, 2), (0, 5), (1, 4)]
    by_hand = -sum(logprobs[b, i - 1, observation.tokens[b, i]] for b, i in places) / 3
    right = [float(logprobs[b, i - 1].argmax() == observation.tokens[b, i]) for b, i in places]
    loss, accuracy = answer_loss(model, observation, answers, segments)
    torch.testing.assert_close(loss, by_hand)
    assert accuracy.item() == pytest.approx(sum(right) / 3)
    again, _ = answer_loss(model, observation, answers, segments, prefix)
    torch.testing.assert_close(again, loss)


def test_a_plan_names_every_number_by_every_query():
    model, observation = tiny_vlm(), tiny_observation([4, 2])
    numbers = torch.tensor([[0, 3, 1, 2], [4, 4, 0, 1]])  # four numbers, as places
    _, hidden = model(
        model.prefix(observation), observation.tokens, observation.token_mask, model.plan.queries
    )
    logprobs = model.plan_logits(hidden).log_softmax(-1)
    assert logprobs.shape == (2, 3, 4, 128)
    terms = [logprobs[b, q, a, numbers[b, a]] for b in range(2) for q in range(3) for a in range(4)]
    places = torch.arange(128.0)
    off = [
        abs(float((logprobs[b, q, a].exp() @ places).detach()) - int(numbers[b, a]))
        for b in range(2)
        for q in range(3)
        for a in range(4)
    ]
    loss, distance = plan_loss(model, observation, numbers)
    assert distance.item() == pytest.approx(sum(off) / 24, rel=1e-4)
    # Four tokens off in the mean cost a nat.
    torch.testing.assert_close(loss, -sum(terms) / 24 + sum(off) / 24 / 4)
    assert loss.item() > math.log(128) / 4
