"""Outputs kept from a rollout against an ordinary pass: log-probabilities, gradients, and when they must not serve."""

import copy

import torch

from vla.data.chat import observe_prompts
from vla.decoding.sampling import Sampling
from vla.policies.text import TextPolicy
from vla.text.tiny import tiny_language_model
from vla.types import concatenate_rows

PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7, 20], [5, 6, 30, 31, 32, 33, 34]]
PLENTY = 2**24


def make_policy():
    torch.manual_seed(0)
    model, tokenizer = tiny_language_model(["what is one and one"], vocab_size=270, hidden_size=32, num_layers=2)
    return TextPolicy(model, Sampling(), 5, [tokenizer.eos_token_id], tokenizer.pad_token_id, max_row_tokens=40)


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
    with policy.recalling(PLENTY):
        drawn = [ask(policy, PROMPTS), ask(policy, [PROMPTS[1], [5, 6, 7, 21]])]  # two rollouts before an update
        observation = concatenate_rows([o for o, _ in drawn])
        trace = concatenate_rows([d.trace for _, d in drawn])
        assert policy.recall.covers(trace["places"][:, 0])
        logprobs, found = gradients(policy, observation, trace)
        assert "forward" not in policy.model.model.layers[0].self_attn.q_proj.__dict__
    expected_logprobs, expected = gradients(policy, observation, without_places(trace))
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-5, atol=1e-5)
    sampled = concatenate_rows([d.logprobs for _, d in drawn])
    torch.testing.assert_close(logprobs[trace["mask"]], sampled[trace["mask"]], rtol=1e-5, atol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_what_was_kept_is_what_is_handed_out():
    """Values put in place of the kept ones come out: the update does not compute them."""
    policy = make_policy()
    with policy.recalling(PLENTY):
        observation, decision = ask(policy, PROMPTS)
        before = policy.score(observation, decision.trace).logprobs
        for kept in policy.recall._kept:
            kept[:] = [torch.zeros_like(torch.cat(kept))]
        assert not torch.allclose(policy.score(observation, decision.trace).logprobs, before)


def test_forgotten_when_a_weight_changes():
    policy = make_policy()
    with policy.recalling(PLENTY):
        observation, decision = ask(policy, PROMPTS)
        with torch.no_grad():
            policy.model.model.layers[0].mlp.up_proj.weight.mul_(3.0)
        assert not policy.recall.covers(decision.trace["places"][:, 0])
        now = policy.score(observation, decision.trace).logprobs
        torch.testing.assert_close(now, policy.score(observation, without_places(decision.trace)).logprobs)
        ask(policy, PROMPTS)  # begins anew
        assert not policy.recall.covers(decision.trace["places"][:, 0])


def test_a_copy_recalls_nothing_and_little_room_keeps_little():
    policy = make_policy()
    with policy.recalling(PLENTY):
        observation, decision = ask(policy, PROMPTS)
        other = copy.deepcopy(policy)
        assert not other.recall.covers(decision.trace["places"][:, 0])
        torch.testing.assert_close(
            other.score(observation, decision.trace).logprobs, policy.score(observation, decision.trace).logprobs
        )
    layers = 2 * (4 * 32 + 2 * 64 + 32)
    with policy.recalling(4 * layers * 9):  # nine places: the prompts' common beginning, and no more
        observation, decision = ask(policy, PROMPTS)
        assert int(decision.trace["places"].max()) == 1
        logprobs = policy.score(observation, decision.trace).logprobs
        torch.testing.assert_close(logprobs[decision.mask], decision.logprobs[decision.mask], rtol=1e-5, atol=1e-5)


def test_greedy_answers_are_not_kept():
    policy = make_policy()
    with policy.recalling(PLENTY):
        observation = observe_prompts(PROMPTS, 8, policy.pad_id, torch.device("cpu"))
        assert "places" not in policy.act(observation, greedy=True).trace
