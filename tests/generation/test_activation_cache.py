"""Outputs kept from a rollout against an ordinary pass: log-probabilities, gradients, and when they
must not serve."""

import copy
from functools import partial

import pytest
import torch

from vla.data.chat import observe_prompts
from vla.generation.generate import split_into_shares
from vla.generation.sampling import Sampling
from vla.policies.text import TextPolicy
from vla.text.tiny_language_model import tiny_language_model
from vla.threads import Threads, add_gradients
from vla.training.optim import make_optimizer
from vla.types import concatenate_rows, map_rows

PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7, 20], [5, 6, 30, 31, 32, 33, 34]]
PLENTY = 2**24


def make_policy():
    torch.manual_seed(0)
    model, tokenizer = tiny_language_model(
        ["what is one and one"], vocab_size=270, hidden_size=32, num_layers=2
    )
    return TextPolicy(
        model, Sampling(), 5, [tokenizer.eos_token_id], tokenizer.pad_token_id, max_row_tokens=40
    )


def ask(policy, prompts, group_size=4):
    repeated = [prompt for prompt in prompts for _ in range(group_size)]
    observation = observe_prompts(repeated, 8, policy.pad_id, torch.device("cpu"))
    return observation, policy.act(observation)


def gradients(policy, observation, trace):
    policy.zero_grad()
    logprobs = policy.score(observation, trace).logprobs
    weights = torch.arange(1, len(logprobs) + 1)[:, None]  # every row pulls differently
    (logprobs * weights).sum().backward()
    return logprobs.detach(), {name: p.grad.clone() for name, p in policy.named_parameters()}


def without_places(trace):
    return {name: value for name, value in trace.items() if name != "places"}


def test_log_probabilities_and_gradients_are_those_of_an_ordinary_pass():
    policy = make_policy()
    with policy.reuse_activations(PLENTY):
        drawn = [
            ask(policy, PROMPTS),
            ask(policy, [PROMPTS[1], [5, 6, 7, 21]]),
        ]  # two rollouts before an update
        observation = concatenate_rows([o for o, _ in drawn])
        trace = concatenate_rows([d.trace for _, d in drawn])
        assert policy.activation_cache.covers(trace["places"][:, 0])
        logprobs, found = gradients(policy, observation, trace)
        assert "forward" not in policy.model.model.layers[0].self_attn.q_proj.__dict__
    expected_logprobs, expected = gradients(policy, observation, without_places(trace))
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-5, atol=1e-5)
    sampled = concatenate_rows([d.logprobs for _, d in drawn])
    torch.testing.assert_close(
        logprobs[trace["mask"]], sampled[trace["mask"]], rtol=1e-5, atol=1e-5
    )
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_what_was_kept_is_what_is_handed_out():
    """Values put in place of the kept ones come out: the update does not compute them."""
    policy = make_policy()
    with policy.reuse_activations(PLENTY):
        observation, decision = ask(policy, PROMPTS)
        before = policy.score(observation, decision.trace).logprobs
        for kept in policy.activation_cache._stored:
            kept[:] = [
                (
                    policy.activation_cache.first,
                    torch.zeros_like(torch.cat([output for _, output in kept])),
                )
            ]
        assert not torch.allclose(policy.score(observation, decision.trace).logprobs, before)


@pytest.mark.parametrize("threads", [Threads(2), Threads(3)])
def test_several_threads_draw_the_same_and_are_given_their_own(threads):
    """Rows in any order, a prompt twice, and more prompts than threads: draws, log-probabilities
    and gradients are those of one thread.
    """
    one, many = make_policy(), make_policy()
    many.threads = threads
    asked = [*PROMPTS, PROMPTS[0], [5, 6, 7, 21], [9, 9]]
    found = []
    for policy in (one, many):
        torch.manual_seed(3)
        with policy.reuse_activations(PLENTY):
            observation, decision = ask(policy, asked, group_size=2)
            assert policy.activation_cache.covers(decision.trace["places"][:, 0])
            policy.zero_grad()

            def loss_of(rows, policy=policy, observation=observation, decision=decision):
                take = partial(torch.index_select, dim=0, index=rows)
                scores = policy.score(map_rows(observation, take), map_rows(decision.trace, take))
                return (scores.logprobs * (rows[:, None] + 1)).sum(), scores.logprobs.detach()

            parameters = list(policy.parameters())
            logprobs = add_gradients(parameters, torch.arange(12).split(3), loss_of, policy.threads)
            assert "forward" not in policy.model.model.layers[0].self_attn.q_proj.__dict__
        found.append((decision, torch.cat(logprobs), [p.grad.clone() for p in parameters]))
    (decision, logprobs, gradients_one), (again, logprobs_many, gradients_many) = found
    assert torch.equal(decision.action, again.action)
    assert torch.equal(decision.mask, again.mask)
    torch.testing.assert_close(again.logprobs, decision.logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logprobs_many, logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        logprobs_many[again.mask], again.logprobs[again.mask], rtol=1e-5, atol=1e-5
    )
    for a, b in zip(gradients_many, gradients_one, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_shares_keep_a_prompt_together():
    prompt = torch.tensor([0, 1, 0, 2, 2, 1, 3, 0])
    shares = split_into_shares(prompt, 2)
    assert sorted(torch.cat(shares).tolist()) == list(range(8))
    assert [sorted(set(prompt[rows].tolist())) for rows in shares] == [[0], [1, 2, 3]]
    assert len(split_into_shares(torch.zeros(5, dtype=torch.long), 3)) == 1
    assert len(split_into_shares(prompt, 1)) == 1


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_forgotten_when_an_optimizer_changes_the_weights(kind):
    policy = make_policy()
    optimizer = make_optimizer(policy, kind, 0.05, 0.0, muon_learning_rate=0.05)
    with policy.reuse_activations(PLENTY):
        observation, decision = ask(policy, PROMPTS)
        gradients(policy, observation, decision.trace)
        optimizer.step()
        assert not policy.activation_cache.covers(decision.trace["places"][:, 0])
        now = policy.score(observation, decision.trace).logprobs
        torch.testing.assert_close(
            now, policy.score(observation, without_places(decision.trace)).logprobs
        )
        ask(policy, PROMPTS)  # begins anew
        assert not policy.activation_cache.covers(decision.trace["places"][:, 0])


def test_a_copy_recalls_nothing_and_little_room_keeps_little():
    policy = make_policy()
    with policy.reuse_activations(PLENTY):
        observation, decision = ask(policy, PROMPTS)
        other = copy.deepcopy(policy)
        assert not other.activation_cache.covers(decision.trace["places"][:, 0])
        torch.testing.assert_close(
            other.score(observation, decision.trace).logprobs,
            policy.score(observation, decision.trace).logprobs,
        )
    layers = 2 * (4 * 32 + 2 * 64 + 32)
    with policy.reuse_activations(
        4 * layers * 9
    ):  # nine places: the prompts' common beginning, and no more
        observation, decision = ask(policy, PROMPTS)
        assert int(decision.trace["places"].max()) == 1
        logprobs = policy.score(observation, decision.trace).logprobs
        torch.testing.assert_close(
            logprobs[decision.mask], decision.logprobs[decision.mask], rtol=1e-5, atol=1e-5
        )


def test_greedy_answers_are_not_kept():
    policy = make_policy()
    with policy.reuse_activations(PLENTY):
        observation = observe_prompts(PROMPTS, 8, policy.pad_id, torch.device("cpu"))
        assert "places" not in policy.act(observation, greedy=True).trace
