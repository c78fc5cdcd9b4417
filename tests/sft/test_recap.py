"""Advantage-conditioned training: values, advantages and labels by hand, and a policy that does
better when asked."""

import math

import pytest
import torch

from tests.models.tiny import tiny_observation
from tests.policies.kinds import task_of
from tests.policies.test_kinds import restless
from vla.data.advantage_tokens import with_advantage_token, without_advantage_token
from vla.models.heads import BinnedValue
from vla.policies.denoising import DenoisingHead
from vla.sft.advantage_conditioning import (
    expected_value,
    fit_values,
    lookahead_advantages,
    nearest_bins,
    returns_to_go,
    select_positive,
    value_features,
)

# Two trajectories, interleaved as a rollout has them: 0 succeeds after three decisions, 1 fails
# after two.
TRAJECTORY = torch.tensor([0, 1, 0, 1, 0])
SUCCESS = torch.tensor([True, False])


def test_returns_by_hand():
    # At most 4 decisions: two are left, then one, then none; a failure costs a whole episode from
    # its start on.
    assert returns_to_go(TRAJECTORY, SUCCESS, 4).tolist() == [-0.5, -1, -0.25, -1, 0]


def test_bins_by_hand():
    # 5 bins at -1, -.75, -.5, -.25, 0
    assert nearest_bins(torch.tensor([-1, -0.8, -0.3, 0.0]), 5).tolist() == [0, 1, 3, 4]
    logits = torch.tensor([[0.0, -math.inf, 0.0, -math.inf, -math.inf]])
    assert expected_value(logits).item() == pytest.approx(-0.75)


def test_advantages_by_hand():
    returns = returns_to_go(TRAJECTORY, SUCCESS, 4)
    values = torch.tensor([-0.6, -0.7, -0.5, -0.9, -0.1])
    to_the_end = torch.tensor([0.1, -0.3, 0.25, -0.1, 0.1])
    torch.testing.assert_close(lookahead_advantages(values, returns, TRAJECTORY, None), to_the_end)
    # One decision ahead: rows 0 and 2 go on in trajectory 0, row 1 in trajectory 1; the last rows
    # as above. Row 0: -.5 + .25 - .5 + .6 = -.15; row 1: -1 + 1 - .9 + .7 = -.2; row 2: -.25 - 0 -
    # .1 + .5 = .15.
    ahead = torch.tensor([-0.15, -0.2, 0.15, -0.1, 0.1])
    torch.testing.assert_close(lookahead_advantages(values, returns, TRAJECTORY, 1), ahead)
    torch.testing.assert_close(lookahead_advantages(values, returns, TRAJECTORY, 3), to_the_end)


def test_the_largest_advantages_are_positive():
    assert select_positive(torch.arange(10.0), 0.3).tolist() == [False] * 7 + [True] * 3
    assert not select_positive(torch.zeros(4), 0.5).any()


def test_labels_stand_behind_the_words_and_come_off_again():
    observation = tiny_observation([3, 2, 4], padding=3)
    labels = [[7], [8, 9]]
    found = with_advantage_token(observation, labels, torch.tensor([1, 0, -1]))
    assert found.token_mask.sum(1).tolist() == [5, 3, 4]
    assert found.tokens[0, 3:5].tolist() == [8, 9]
    assert found.tokens[1, 2] == 7
    assert torch.equal(found.tokens[2], observation.tokens[2])
    assert torch.equal(found.instruction_mask, observation.token_mask)
    both = with_advantage_token(observation, labels, torch.tensor([1, 1, 1]))
    assert torch.equal(without_advantage_token(both).token_mask, observation.token_mask)
    with pytest.raises(
        ValueError,
        match=r"policy.instruction_length \(7\) has no room for the 4 tokens of an advantage label",
    ):
        with_advantage_token(observation, [[1, 2, 3, 4]], torch.tensor([0, 0, 0]))


def test_a_value_model_tells_starts_apart():
    """Two instructions of different returns: the fitted distribution has its mean at each."""
    torch.manual_seed(0)
    policy = task_of("flow_one_step")[0].policy
    features = value_features(policy.model, tiny_observation([2, 4])).repeat(16, 1)
    returns = torch.tensor([-0.9, -0.2]).repeat(16)
    head = BinnedValue(features.shape[1], 21)
    assert fit_values(head, features, nearest_bins(returns, 21), 60) < 0.2
    torch.testing.assert_close(expected_value(head(features)), returns, rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", ["token_parallel", "regression", "flow_one_step", "diffusion"])
def test_a_label_is_told_to_the_head_and_hidden_from_what_reads_the_scene(kind):
    """A model that never met the label sees with it what it sees without, to the bit; what is
    decided still differs."""
    policy = restless(task_of(kind)[0].policy)
    plain = tiny_observation([3, 2], padding=2)
    good, bad = (
        with_advantage_token(plain, [[11, 12], [13]], torch.full((2,), which)) for which in (0, 1)
    )
    queries = (policy.head.head if kind == "token_parallel" else policy.head.readout).queries
    prefix = policy.model.prefix(plain)
    seen = policy.model.encode_queries(prefix, plain, queries)
    assert torch.equal(policy.model.encode_queries(prefix, good, queries), seen)
    assert torch.equal(policy.model.with_advantage_label(seen, plain), seen)
    actions = torch.rand(2, 2, 1)
    known = torch.ones(2, 2, dtype=torch.bool)
    losses = []
    for observation in (plain, good, bad):
        torch.manual_seed(0)
        losses.append(policy.imitation_terms(observation, actions, known)[0])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (losses[one] - losses[other]).abs().max() > 1e-5


@pytest.mark.parametrize("kind", ["flow_all_steps", "flow_one_step", "diffusion", "regression"])
def test_guidance_goes_further_than_the_label(kind):
    """With guidance g the prediction is that without the label plus g times the difference; 1
    changes nothing, and a draw is scored as it was drawn.
    """
    policy = restless(task_of(kind)[0].policy)
    plain = tiny_observation([3, 2], padding=2)
    asked = with_advantage_token(plain, [[11, 12]], torch.tensor([0, 0]))
    state, time = torch.randn(2, 1, 2, 1), torch.full((2, 1), 0.5)
    found = {}
    for guidance in (0.0, 1.0, 3.0):
        policy.guidance = guidance
        found[guidance] = predicted(policy, asked, state, time)
        decision = policy.act(asked)
        gap = (policy.score(asked, decision.trace).logprobs - decision.logprobs).abs().max()
        assert gap <= 1e-4
    policy.guidance = 1.0
    unlabelled = predicted(policy, plain, state, time)
    torch.testing.assert_close(found[0.0], unlabelled, rtol=0, atol=1e-5)
    assert (found[1.0] - found[0.0]).abs().max() > 1e-3
    torch.testing.assert_close(
        found[3.0], found[0.0] + 3 * (found[1.0] - found[0.0]), rtol=1e-4, atol=1e-4
    )


def predicted(policy, observation, state, time):
    """What a policy makes of an observation: its means, or what it says of a noised chunk."""
    inputs = policy.head_input(policy.perceive(observation), observation)
    if isinstance(policy.head, DenoisingHead):
        return policy.head.predict(inputs, state, time)[0]
    return policy.head._means(inputs)
