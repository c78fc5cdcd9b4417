import copy

import pytest
import torch

from vla.generation.beam import beam_search
from vla.generation.sampling import Sampling
from vla.policies.text import TextPolicy
from vla.rl.protocols import Critic, Policy
from vla.text.tiny_language_model import tiny_language_model
from vla.types import Observation, map_rows

STOPS = list(range(2, 30))
SAMPLINGS = [
    Sampling(),
    Sampling(0.6),
    Sampling(1.5, top_k=12),
    Sampling(1.0, top_p=0.75),
    Sampling(0.9, 30, 0.9),
]


@pytest.fixture(scope="module")
def model():
    """Weights large enough that looking at a wrong token changes log-probabilities by whole
    units."""
    return tiny_language_model(["what is two plus three"], weight_scale=0.3)[0]


@pytest.fixture(scope="module")
def observation():
    """3 prompts of different lengths, 4 rows each."""
    torch.manual_seed(1)
    mask = torch.arange(7) < torch.tensor([7, 3, 5])[:, None]
    tokens = torch.randint(3, 320, (3, 7)).masked_fill(~mask, 0)
    return Observation({}, None, tokens.repeat_interleave(4, 0), mask.repeat_interleave(4, 0))


def make(model, sampling=SAMPLINGS[0], **settings):
    return TextPolicy(copy.deepcopy(model), sampling, 10, STOPS, 0, **settings)


def test_it_is_a_policy_and_a_critic(model):
    assert isinstance(make(model), Policy)
    assert isinstance(make(model, value_head=True), Critic)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("greedy", [True, False])
def test_scores_are_the_log_probabilities_of_the_draws(
    model, observation, sampling, share_prompts, greedy
):
    policy = make(model, sampling, share_prompts=share_prompts, value_head=True).train()
    torch.nn.init.normal_(policy.value_head.weight)
    torch.manual_seed(2)
    decision = policy.act(observation, greedy=greedy)
    scores = policy.score(observation, decision.trace)
    torch.testing.assert_close(scores.logprobs, decision.logprobs, rtol=0, atol=2e-5)
    torch.testing.assert_close(scores.values, decision.values, rtol=1e-4, atol=1e-4)
    assert not decision.logprobs.requires_grad
    assert (scores.logprobs[~decision.mask] == 0).all()
    assert torch.equal(decision.trace["mask"], decision.mask)


def test_log_probabilities_are_those_of_the_model_itself(model, observation):
    """An independent check: one row at a time, no cache, no padding, the model's own logits."""
    policy = make(model, Sampling(0.8))
    decision = policy.act(observation)
    for row in range(12):
        prompt = observation.tokens[row][observation.token_mask[row]]
        completion = decision.action[row][decision.mask[row]]
        logits = (
            model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
            / 0.8
        )
        expected = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
        torch.testing.assert_close(
            decision.logprobs[row][decision.mask[row]], expected, rtol=0, atol=2e-5
        )


@pytest.mark.parametrize(
    "settings",
    [{}, {"tree_attention": False}, {"tree_attention": False, "max_row_tokens": 20}],
    ids=str,
)
def test_sharing_prompts_changes_neither_scores_nor_gradients(model, observation, settings):
    plain = make(model, share_prompts=False, value_head=True)
    shared = make(model, value_head=True, **settings)
    trace = plain.act(observation).trace
    assert shared.share_prompts
    assert shared.tree_attention == (not settings)
    assert not plain.tree_attention
    gradients = []
    for policy in (plain, shared):
        torch.nn.init.constant_(policy.value_head.weight, 0.1)
        scores = policy.score(observation, trace)
        (scores.logprobs.square().sum() + scores.entropy.sum() + scores.values.sum()).backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name],
            expected,
            rtol=1e-3,
            atol=1e-3 * float(expected.abs().max()),
            msg=name,
        )


def test_beams_find_what_is_likelier_than_greedy(model, observation):
    greedy, beams = make(model), make(model, num_beams=4)
    found, first = beams.act(observation, greedy=True), greedy.act(observation, greedy=True)
    hypotheses = beam_search(model, observation.tokens, observation.token_mask, 4, 10, STOPS)
    for row, best in enumerate(hypotheses):
        assert found.action[row][found.mask[row]].tolist() == list(best[0].tokens)
    mean = [(d.logprobs.sum(1) / d.mask.sum(1)).mean() for d in (found, first)]
    assert mean[0] > mean[1]
    torch.testing.assert_close(beams.score(observation, found.trace).logprobs, found.logprobs)
    torch.manual_seed(2)
    drawn = beams.act(observation)
    torch.manual_seed(2)
    assert torch.equal(
        greedy.act(observation).action, drawn.action
    )  # draws are draws, whatever num_beams


def test_rows_do_not_notice_each_other(model, observation):
    policy = make(model)
    trace = policy.act(observation).trace
    scores = policy.score(observation, trace)
    some = torch.tensor([9, 2, 3])
    alone = policy.score(
        map_rows(observation, lambda t: t[some]), map_rows(trace, lambda t: t[some])
    )
    torch.testing.assert_close(alone.logprobs, scores.logprobs[some], rtol=0, atol=2e-5)


def test_the_cache_is_not_stale_after_a_weight_update(model, observation):
    policy = make(model)
    policy.act(observation)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    decision = policy.act(observation)
    torch.testing.assert_close(
        policy.score(observation, decision.trace).logprobs, decision.logprobs, rtol=0, atol=2e-5
    )


def test_filtered_draws_keep_a_finite_ratio_when_the_weights_move(model, observation):
    """The support is that of the rollout: a token that today's filter would remove still has a
    probability."""
    policy = make(model, Sampling(1.0, top_k=3))
    decision = policy.act(observation)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    scores = policy.score(observation, decision.trace)
    assert scores.logprobs.isfinite().all()
    assert scores.entropy.max() <= torch.tensor(3.0).log() + 1e-5


def test_a_value_head_starts_at_zero_and_is_all_that_the_critic_owns(model, observation):
    policy = make(model, value_head=True)
    assert (policy.act(observation).values == 0).all()
    assert (policy.value(observation) == 0).all()
    assert sum(p.numel() for p in policy.critic_parameters()) == 64 + 1
    torch.nn.init.normal_(policy.value_head.weight)
    decision = policy.act(observation)
    torch.testing.assert_close(
        policy.value(observation), decision.values[:, 0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft 0.21
def test_adapters_act_and_score_alike(model, observation):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        copy.deepcopy(model),
        LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj", "down_proj"]),
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    policy = TextPolicy(adapted, Sampling(), 10, STOPS, 0).train()
    decision = policy.act(observation)
    torch.testing.assert_close(
        policy.score(observation, decision.trace).logprobs, decision.logprobs, rtol=0, atol=2e-5
    )
    with adapted.disable_adapter():
        plain = policy.score(observation, decision.trace).logprobs
    assert (plain - decision.logprobs).abs().max() > 0.1


def test_mistakes_are_named(model):
    with pytest.raises(ValueError, match="max_new_tokens .0. must be at least 1"):
        TextPolicy(model, Sampling(), 0, STOPS, 0)
    with pytest.raises(ValueError, match="stop_ids is empty"):
        TextPolicy(model, Sampling(), 5, [], 0)


def test_a_model_with_damaged_weights_refuses_to_speak(model, observation):
    for policy, greedy in (
        (make(model), False),
        (make(model), True),
        (make(model, num_beams=2), True),
    ):
        with torch.no_grad():
            next(policy.model.parameters())[3] = float("nan")
        with pytest.raises(FloatingPointError, match="the policy refuses to act"):
            policy.act(observation, greedy=greedy)
        with pytest.raises(FloatingPointError, match="its logits are not finite"):
            make(policy.model)
