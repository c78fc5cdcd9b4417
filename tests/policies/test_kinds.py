"""What every kind of policy must do: say again how likely its draws were, whatever shares the call,
and be saved."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.models.tiny import tiny_observation
from tests.policies.kinds import CONTINUOUS, KINDS, MAKERS, flow, task_of
from tests.rl.contract import check_policy
from vla.actions.fast import fit_fast
from vla.models.action_expert import unpack_prefix_cache
from vla.policies.denoising import DenoisingHead
from vla.policies.fast import score_tokens
from vla.rl.branching import ResamplingPolicy
from vla.rl.protocols import Critic, Policy
from vla.types import map_rows


def restless(policy):
    """The same policy with no zeros in it: heads that start at zero would make tests pass that
    should not."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return policy


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_of_the_core(kind):
    task, _ = task_of(kind)
    restless(task.policy)
    assert isinstance(task.policy, Policy)
    assert isinstance(task.policy, Critic)
    check_policy(task)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", MAKERS)
def test_scores_are_the_log_probabilities_of_the_draws(kind, frozen):
    policy = restless(task_of(kind)[0].policy)
    if frozen:
        policy.freeze_prefix()
    observation = tiny_observation([5, 2, 4, 1], padding=2)
    for greedy in (False, True):
        decision = policy.act(observation, greedy=greedy)
        assert ("prefix" in decision.trace) == frozen
        assert decision.logprobs.shape == (4, policy.num_draws)
        assert decision.action.shape == (4, 2, 1)
        assert decision.exact == (kind != "flow_matching")
        scores = policy.score(observation, decision.trace)
        gap = (scores.logprobs - decision.logprobs)[decision.mask].abs().max()
        assert gap <= 1e-4, gap
        torch.testing.assert_close(scores.values, decision.values, rtol=0, atol=1e-4)
        torch.testing.assert_close(policy.value(observation), decision.values, rtol=0, atol=1e-4)
    sampled = torch.stack([policy.act(observation).action for _ in range(3)])
    assert (sampled.std(0) > 0).any()


@pytest.mark.parametrize("kind", MAKERS)
def test_padding_and_the_rows_beside_it_change_no_score(kind):
    policy, lengths = restless(task_of(kind)[0].policy), [5, 2, 4, 1]
    observation = tiny_observation(lengths, padding=2)
    decision = policy.act(observation)
    for row, length in enumerate(lengths):
        one, trace = (
            map_rows(part, lambda t, r=row: t[r : r + 1]) for part in (observation, decision.trace)
        )
        bare = dataclasses.replace(
            one, tokens=one.tokens[:, :length], token_mask=one.token_mask[:, :length]
        )
        torch.testing.assert_close(
            policy.score(bare, trace).logprobs[0], decision.logprobs[row], rtol=0, atol=1e-4
        )
    other = dataclasses.replace(observation, tokens=(observation.tokens + 1) % 40)
    moved = policy.score(other, decision.trace).logprobs - decision.logprobs
    assert (moved.abs().amax(1) > 1e-3).all()  # the instruction does matter


@pytest.mark.parametrize("kind", MAKERS)
def test_weights_saved_and_loaded_give_the_same_log_probabilities(kind):
    first, second = restless(task_of(kind)[0].policy), task_of(kind)[0].policy
    observation = tiny_observation([3, 3])
    decision = first.act(observation)
    second.load_state_dict(first.state_dict())
    assert torch.equal(
        second.score(observation, decision.trace).logprobs,
        first.score(observation, decision.trace).logprobs,
    )


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_not_to_be_imitated_carries_no_loss(kind):
    policy = restless(task_of(kind)[0].policy)
    observation, actions = tiny_observation([3, 3, 3]), torch.rand(3, 2, 1) * 3
    changed = actions.clone()
    changed[0, 1] = 3 - changed[0, 1]
    mask = torch.tensor([[True, False], [True, True], [True, True]])
    results = []
    for given in (actions, changed):
        torch.manual_seed(5)
        terms, counted = policy.imitation_terms(observation, given, mask)
        assert terms.isfinite().all()
        results.append((terms * counted)[1:])
    assert torch.equal(*results)
    if kind in CONTINUOUS:
        assert counted.tolist() == mask.tolist()
    else:  # a token of a compressed chunk tells of all its control steps
        assert not counted[0].any()


@pytest.mark.parametrize("kind", [*MAKERS, "token_parallel"])
def test_more_draws_from_what_was_perceived(kind):
    """Branches try several decisions from one state: each is scored as it was drawn, and nobody
    looks again."""
    policy = restless(task_of(kind)[0].policy)
    assert isinstance(policy, ResamplingPolicy)
    assert not policy.can_redraw
    policy.freeze_model()
    assert policy.can_redraw
    observation = tiny_observation([3, 2, 4], padding=1)
    decision = policy.act(observation)
    blind = dataclasses.replace(observation, images={})
    more = policy.redraw(blind, decision.trace, 3)
    assert more.action.shape == (9, 2, 1)
    again = map_rows(blind, lambda tensor: tensor.repeat_interleave(3, 0))
    scores = policy.score(again, more.trace)
    assert (scores.logprobs - more.logprobs)[more.mask].abs().max() <= 1e-4
    torch.testing.assert_close(more.values, decision.values.repeat_interleave(3), rtol=0, atol=1e-4)
    tried = torch.cat(
        [policy.redraw(blind, decision.trace, 3).action.view(3, 3, -1) for _ in range(4)], dim=1
    )
    assert (tried.std(1) > 0).any()


@pytest.mark.parametrize("kind", ["flow_one_step", "flow_all_steps", "diffusion"])
def test_branches_differ_in_what_the_policy_draws_alone(kind):
    """Decisions from one state start from the same noise; where their steps are alike too, so are
    their actions."""
    policy = restless(task_of(kind)[0].policy)
    policy.freeze_model()
    observation = tiny_observation([3, 2])
    trace = policy.act(observation).trace
    if kind == "diffusion":
        policy.head.process.stds = [1e-9] * policy.head.process.num_steps
    else:
        policy.head.process = dataclasses.replace(policy.head.process, noise_level=1e-9)
    actions = policy.redraw(observation, trace, 3).action.view(2, 3, -1)
    torch.testing.assert_close(actions, actions[:, :1].expand_as(actions), rtol=0, atol=1e-5)
    assert (actions[0] - actions[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "kind", ["flow_one_step", "flow_all_steps", "flow_learned_noise", "diffusion"]
)
def test_only_the_last_steps_are_draws_where_the_settings_say_so(kind):
    policy = restless(task_of(kind)[0].policy)
    observation, steps = tiny_observation([3, 2, 4, 1] * 8), policy.head.process.num_steps
    policy.head.settings = dataclasses.replace(policy.head.settings, num_stochastic_steps=2)
    decision = policy.act(observation)
    assert policy.num_draws == decision.logprobs.shape[1] == (1 if kind == "flow_one_step" else 2)
    assert set(decision.trace["step"].flatten().tolist()) == {steps - 2, steps - 1}
    scores = policy.score(observation, decision.trace)
    assert (scores.logprobs - decision.logprobs).abs().max() <= 1e-4
    for wrong in (0, steps + 1):
        refused = dataclasses.replace(policy.head.settings, num_stochastic_steps=wrong)
        with pytest.raises(ValueError, match="num_stochastic_steps"):
            DenoisingHead(policy.model, policy.head.process, policy.head.normalizer, refused)


def test_what_is_alike_is_read_once():
    policy = restless(task_of("diffusion")[0].policy)
    observation = tiny_observation([3, 2, 4])
    rows = torch.tensor([2, 0, 0, 2, 1, 2])
    repeated = map_rows(observation, lambda tensor: tensor[rows])
    prefix, heights = policy.model.prefix(repeated), []
    hook = policy.model.backbone.register_forward_hook(
        lambda part, given, output: heights.append(len(output))
    )
    again = policy.perceive(repeated, {"prefix": prefix})
    assert heights == [3]
    hook.remove()
    torch.testing.assert_close(again, policy.perceive(repeated), rtol=0, atol=1e-5)


def test_an_insulated_expert_leaves_the_language_model_alone():
    """Knowledge insulation: the expert's loss gives its own weights a gradient, and the model
    none."""
    reached = {}
    for stop_gradient_to_vlm in (True, False):
        policy = restless(
            flow("all_steps", stop_gradient_to_vlm=stop_gradient_to_vlm)(
                torch.rand(8, 2, 1).numpy()
            )
        )
        terms, _ = policy.imitation_terms(
            tiny_observation([3]), torch.rand(1, 2, 1), torch.ones(1, 2, dtype=torch.bool)
        )
        terms.sum().backward()
        reached[stop_gradient_to_vlm] = any(
            p.grad is not None and bool(p.grad.any()) for p in policy.model.backbone.parameters()
        )
        assert all(p.grad is not None for p in policy.head.expert.layers.parameters())
    assert reached == {True: False, False: True}


def test_tokens_teach_the_model_that_the_expert_leaves_alone():
    """Knowledge insulation whole: the language model learns actions from compressed tokens, and
    only from those."""
    chunks = np.random.default_rng(0).uniform(0, 3, (40, 2, 1)).astype(np.float32)
    observation, actions = tiny_observation([3, 2]), torch.rand(2, 2, 1) * 3
    mask = torch.tensor([[True, True], [True, False]])
    code = fit_fast(chunks, 24, 2.0)
    policy = restless(
        flow("all_steps", stop_gradient_to_vlm=True, token_weight=1.0, code=code)(chunks)
    )
    writer, found = policy.head.writer, {}
    for taught in (False, True):
        policy.head.writer = writer if taught else None
        policy.zero_grad()
        torch.manual_seed(4)
        terms, counted = policy.imitation_terms(observation, actions, mask)
        terms[0].sum().backward()
        backbone = policy.model.backbone.parameters()
        found[taught] = (
            terms.detach(),
            any(p.grad is not None and bool(p.grad.any()) for p in backbone),
        )
        assert torch.equal(counted, mask)
    assert (found[False][1], found[True][1]) == (False, True)
    # Row 0 is imitated whole: what is added is the mean cross-entropy of its tokens. Row 1 is not,
    # and gets nothing.
    ids, there = code.encode(actions)
    read = unpack_prefix_cache(
        policy.model, policy.head.readout, policy.perceive(observation), observation
    )
    logprobs, _ = score_tokens(policy.head.writer, policy.model, read, ids, there, 1.0)
    added = found[True][0] - found[False][0]
    assert logprobs[0].sum() < 0
    torch.testing.assert_close(
        added[0], (-logprobs[0].sum() / there[0].sum()).expand(2), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(added[1], torch.zeros(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_adapters_on_the_model_and_the_head_in_full(kind):
    """LoRA freezes the language model but for its adapters; the head and the expert keep training
    in full."""
    from vla.models.lora import add_lora

    policy = task_of(kind)[0].policy
    add_lora(policy.model.backbone.model, rank=2, alpha=4.0)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    inside = {name for name in trained if name.startswith("model.backbone.")}
    assert inside
    assert all("lora_" in name for name in inside)
    assert any(name.startswith(("head.expert.", "head.head.")) for name in trained)
    observation = tiny_observation([3, 2])
    decision = policy.act(observation)
    torch.testing.assert_close(
        policy.score(observation, decision.trace).logprobs, decision.logprobs, rtol=0, atol=1e-4
    )


def test_gradient_checkpointing_changes_no_gradient():
    """The expert reads keys and values of layers that are computed again in the backward pass."""
    from vla.models.backbone import enable_gradient_checkpointing

    found = []
    for checkpointed in (False, True):
        policy = restless(task_of("flow_all_steps")[0].policy)
        if checkpointed:
            enable_gradient_checkpointing(policy.model.backbone)
        torch.manual_seed(2)
        everything = torch.ones(2, 2, dtype=torch.bool)
        terms, _ = policy.imitation_terms(tiny_observation([3, 2]), torch.ones(2, 2, 1), everything)
        terms.sum().backward()
        found.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert any(name.startswith("model.backbone.") for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_the_model_has_seen_can_be_kept(kind):
    """The loss on kept features is the loss, its gradient stays in the head; and RL may freeze the
    model."""
    policy = restless(task_of(kind)[0].policy)
    assert policy.can_train_head
    observation, actions, mask = (
        tiny_observation([3, 2]),
        torch.rand(2, 2, 1),
        torch.ones(2, 2, dtype=torch.bool),
    )
    losses = []
    for hidden in (None, policy.perceive(observation).detach()):
        torch.manual_seed(4)
        losses.append(policy.imitation_terms(observation, actions, mask, hidden)[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    policy.freeze_model()
    assert any(p.requires_grad for p in policy.parameters())
    blind = dataclasses.replace(
        observation, images={n: i * 0 for n, i in observation.images.items()}
    )
    decision = policy.act(observation)
    scores = policy.score(blind, decision.trace)
    torch.testing.assert_close(scores.logprobs, decision.logprobs, rtol=0, atol=1e-4)
    scores.logprobs.sum().backward()
    assert all(p.grad is None for p in policy.model_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_with_damaged_weights_refuses_to_act(kind):
    policy = restless(task_of(kind)[0].policy)
    observation = tiny_observation([5, 2])
    policy.act(observation)
    with torch.no_grad():
        next(policy.model.backbone.parameters()).fill_(float("nan"))
    for greedy in (False, True):
        with pytest.raises(FloatingPointError, match="the policy refuses to act"):
            policy.act(observation, greedy=greedy)
