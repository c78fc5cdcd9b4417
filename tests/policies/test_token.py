"""A policy in tokens says again how likely its draws were, and draws only what means something."""

import dataclasses
import math

import pytest
import torch

from tests.models.tiny import tiny_observation, tiny_vlm
from tests.policies.tiny import (
    CONSTANT,
    DECODINGS,
    identity_task,
    tiny_bins,
    tiny_policy,
    token_policy,
)
from tests.rl.contract import check_policy
from vla.policies.action_tokens import draw_ids
from vla.types import map_rows

LENGTHS = [5, 2, 4, 1]


@pytest.fixture(scope="module", params=DECODINGS)
def policy(request):
    return tiny_policy(request.param)


@pytest.fixture
def observation():
    return tiny_observation(LENGTHS, padding=2)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_it_keeps_the_contract_of_the_core(decoding):
    check_policy(dataclasses.replace(identity_task(decoding), policy=tiny_policy(decoding)))


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("decoding", DECODINGS)
def test_scores_are_the_log_probabilities_of_the_draws(decoding, frozen, greedy, observation):
    policy = tiny_policy(decoding)
    if frozen:
        policy.freeze_prefix()
    torch.manual_seed(1)
    decision = policy.act(observation, greedy=greedy)
    assert set(decision.trace) == ({"ids", "prefix"} if frozen else {"ids"})
    assert decision.logprobs.shape == (4, policy.num_draws) == (4, 6)
    assert decision.logprobs.std() > 0.1  # not all ids are alike
    scores = policy.score(observation, decision.trace)
    torch.testing.assert_close(scores.logprobs, decision.logprobs, rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.values, decision.values, rtol=0, atol=1e-4)
    torch.testing.assert_close(policy.value(observation), decision.values, rtol=0, atol=1e-4)
    assert decision.values.std() > 0.01


def test_neither_the_rows_beside_it_nor_padding_change_a_score(policy, observation):
    decision = policy.act(observation)
    for row, length in enumerate(LENGTHS):
        one, trace = (
            map_rows(part, lambda t, r=row: t[r : r + 1]) for part in (observation, decision.trace)
        )
        bare = dataclasses.replace(
            one, tokens=one.tokens[:, :length], token_mask=one.token_mask[:, :length]
        )
        scores = policy.score(bare, trace)
        torch.testing.assert_close(scores.logprobs[0], decision.logprobs[row], rtol=0, atol=1e-4)
        torch.testing.assert_close(scores.values[0], decision.values[row], rtol=0, atol=1e-4)
    other = observation.tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 40
    moved = (
        policy.score(dataclasses.replace(observation, tokens=other), decision.trace).logprobs
        - decision.logprobs
    )
    assert (moved.abs().amax(1) > 1e-2).all()  # the instruction does matter


def test_writing_with_a_cache_is_writing_with_whole_passes(observation):
    """Greedy ids one by one: each is the likeliest given those before it, by a score that keeps no
    cache."""
    policy = tiny_policy("autoregressive")
    ids = policy.act(observation, greedy=True).trace["ids"]
    for draw in range(policy.num_draws):
        found = []
        for candidate in range(int(policy.head.valid[draw % 3].sum())):
            changed = ids.clone()
            changed[:, draw] = candidate
            found.append(policy.score(observation, {"ids": changed}).logprobs[:, draw])
        assert torch.equal(torch.stack(found, 1).argmax(1), ids[:, draw])


def test_a_later_draw_depends_on_an_earlier_one_only_when_written_in_turn(observation):
    for decoding in DECODINGS:
        policy = tiny_policy(decoding)
        ids = policy.act(observation).trace["ids"]
        changed = ids.clone()
        changed[:, 2] = 1 - changed[:, 2]  # the gripper of the first control step
        before = policy.score(observation, {"ids": ids}).logprobs
        moved = (policy.score(observation, {"ids": changed}).logprobs - before).abs().amax(0) > 1e-4
        assert moved.tolist() == [False, False, True] + [decoding == "autoregressive"] * 3


def test_only_ids_that_mean_something_are_drawn(policy, observation):
    torch.manual_seed(0)
    many = map_rows(observation, lambda t: t.repeat(200, *[1] * (t.ndim - 1)))
    decision = policy.act(many)
    ids = decision.trace["ids"]
    assert ids.amin() == 0
    assert ids.amax(0).tolist() == [4, 4, 1, 4, 4, 1]
    assert decision.action.shape == (800, 2, 4)
    assert decision.action[..., 1].unique().tolist() == [CONSTANT]
    assert decision.action[..., 3].unique().tolist() == [-1.0, 1.0]
    torch.testing.assert_close(decision.action, policy.head.bins.decode(ids.view(800, 2, 3)))
    assert bool(decision.mask.all())
    assert decision.exact


def test_probabilities_and_entropy_by_enumeration(policy, observation):
    """For every draw: try each id there, whatever came before kept; they sum to 1 and give the
    entropy."""
    ids = policy.act(observation).trace["ids"]
    entropy = policy.score(observation, {"ids": ids}).entropy
    for draw in range(policy.num_draws):
        logprobs = []
        for candidate in range(int(policy.head.valid[draw % 3].sum())):
            changed = ids.clone()
            changed[:, draw] = candidate
            logprobs.append(policy.score(observation, {"ids": changed}).logprobs[:, draw])
        table = torch.stack(logprobs, 1)
        torch.testing.assert_close(table.exp().sum(1), torch.ones(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            -(table.exp() * table).sum(1), entropy[:, draw], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("decoding", DECODINGS)
def test_temperature_divides_the_logits(decoding, observation):
    warm, hot = tiny_policy(decoding, temperature=1.0), tiny_policy(decoding, temperature=2.0)
    ids = warm.act(observation).trace["ids"]
    ids[:, 2] = 0
    other = ids.clone()
    other[:, 2] = 1  # the gripper: the difference of two log-probs is the difference of two logits
    gaps = [
        (
            p.score(observation, {"ids": ids}).logprobs
            - p.score(observation, {"ids": other}).logprobs
        )[:, 2]
        for p in (warm, hot)
    ]
    torch.testing.assert_close(gaps[0], 2 * gaps[1], rtol=1e-3, atol=1e-4)


def test_greedy_draws_no_random_numbers(policy, observation):
    state = torch.get_rng_state()
    first = policy.act(observation, greedy=True)
    assert torch.equal(torch.get_rng_state(), state)
    policy.act(observation)
    assert not torch.equal(torch.get_rng_state(), state)
    assert torch.equal(policy.act(observation, greedy=True).action, first.action)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("decoding", DECODINGS)
def test_the_critic_trains_the_backbone_only_when_asked_to(decoding, detach, observation):
    policy = tiny_policy(decoding, detach_critic=detach)
    scores = policy.score(observation, policy.act(observation).trace)
    scores.values.square().sum().backward()
    own = {id(p) for p in policy.critic_parameters()}
    assert all(p.grad.abs().sum() > 0 for p in policy.critic_parameters())
    reached = {n for n, p in policy.named_parameters() if p.grad is not None and id(p) not in own}
    assert (reached == set()) == detach


@pytest.mark.parametrize("decoding", DECODINGS)
def test_a_frozen_prefix_is_read_from_the_trace_and_gets_no_gradient(decoding, observation):
    policy = tiny_policy(decoding)
    policy.freeze_prefix()
    decision = policy.act(observation)
    blind = dataclasses.replace(
        observation, images={n: i * 0 for n, i in observation.images.items()}
    )
    scores = policy.score(blind, decision.trace)
    torch.testing.assert_close(scores.logprobs, decision.logprobs, rtol=0, atol=1e-4)
    scores.logprobs.sum().backward()
    assert all(p.grad is None for p in policy.model.prefix_parameters())
    assert policy.model.backbone.word_embeddings.grad.abs().sum() > 0


def test_imitating_is_scoring_the_ids_of_the_actions(policy, observation):
    actions = torch.randn(4, 2, 4)
    ids = policy.head.bins.encode(actions).flatten(1)
    expected = policy.score(observation, {"ids": ids}).logprobs
    terms, _ = policy.imitation_terms(observation, actions, torch.ones(4, 2, dtype=torch.bool))
    torch.testing.assert_close(-terms, expected, rtol=0, atol=1e-6)


def test_a_mask_over_control_steps_is_spread_over_their_draws(policy, observation):
    mask = torch.tensor([[True, False], [True, True]] * 2)
    _, counted = policy.imitation_terms(observation, torch.randn(4, 2, 4), mask)
    assert counted.int().tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6] * 2


def test_actions_are_the_last_ids_and_the_words_stay_as_they_were():
    before = tiny_vlm().backbone.word_embeddings.detach()
    policy = token_policy(tiny_vlm(), tiny_bins(), 2, "parallel", 1.0)
    assert policy.head.first_id == 448 - 5
    assert torch.equal(policy.model.backbone.word_embeddings[:59], before[:59])
    assert not torch.equal(policy.model.backbone.word_embeddings[59:], before[59:])


def test_what_cannot_be_built_says_so():
    with pytest.raises(ValueError, match=r"policy.temperature \(0.0\) must be positive"):
        tiny_policy("parallel", temperature=0.0)
    with pytest.raises(
        ValueError, match="a vocabulary of 4 ids has no room for the 128 locations and 256 actions"
    ):
        tiny_vlm(vocabulary_size=4)
    policy = tiny_policy("autoregressive")
    with pytest.raises(ValueError, match=r"choose rl.adapt=backbone \(or, with policy=token"):
        policy.freeze_model()


def test_a_frozen_model_is_not_run_again(observation):
    policy = tiny_policy("parallel")
    policy.freeze_model()
    decision = policy.act(observation)
    blind = dataclasses.replace(observation, images={})  # what is frozen stands in the trace
    scores = policy.score(blind, decision.trace)
    torch.testing.assert_close(scores.logprobs, decision.logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.values, decision.values, rtol=0, atol=1e-5)
    scores.logprobs.sum().backward()
    moved = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None}
    assert moved == {"head"}
    assert policy.head.head.queries.grad is None


def test_draws_are_as_frequent_as_they_are_likely():
    torch.manual_seed(3)
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.2, 0.049, 0.001, 0.0])
    counts = torch.bincount(
        draw_ids(probabilities.log().expand(20000, 7), greedy=False), minlength=7
    )
    assert counts[[1, 6]].tolist() == [0, 0]
    expected = 20000 * probabilities
    chi_square = ((counts - expected).square() / expected)[probabilities > 0].sum()
    # Five possible ids, four degrees of freedom: one draw in a thousand lies above 18.5.
    assert chi_square < 18.5


def test_certain_and_nearly_impossible_ids():
    certain = torch.tensor([[-math.inf, 0.0, -math.inf]]).expand(5000, 3)
    assert draw_ids(certain, greedy=False).unique().tolist() == [1]
    nearly = torch.tensor([[0.0, -200.0]]).expand(5000, 2)  # e^-200 vanishes beside 1
    assert draw_ids(nearly, greedy=False).unique().tolist() == [0]
    assert draw_ids(torch.tensor([[-1.0, -0.5, -2.0]]), greedy=True).tolist() == [1]


def test_draws_from_one_state_share_a_pass_and_get_the_gradient_of_their_own():
    """Rows that stand beside others of their state are scored with them; apart, each by itself."""
    policy = tiny_policy("parallel")
    policy.freeze_model()
    observation = tiny_observation([3, 2, 4], padding=1)
    decision = policy.act(observation)
    blind = dataclasses.replace(observation, images={})
    more = policy.redraw(blind, decision.trace, 4)
    together = map_rows(blind, lambda tensor: tensor.repeat_interleave(4, 0))
    found = {}
    for name, order in (
        ("together", torch.arange(12)),
        ("apart", torch.arange(12).view(3, 4).T.flatten()),
    ):
        policy.zero_grad()
        here = map_rows(together, lambda tensor, order=order: tensor[order])
        scores = policy.score(here, map_rows(more.trace, lambda tensor, order=order: tensor[order]))
        (scores.logprobs * torch.arange(1.0, 13.0)[order, None]).sum().backward()
        gradient = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
        found[name] = (
            scores.logprobs.detach()[order.argsort()],
            scores.values.detach()[order.argsort()],
            *gradient,
        )
    for one, other in zip(found["together"], found["apart"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
