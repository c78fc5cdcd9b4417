"""A small policy on top of a frozen one: it starts as the frozen policy, scores what it drew, and
learns while every weight below it stays."""

import dataclasses

import pytest
import torch
from torch.distributions import Normal

from tests.models.tiny import tiny_observation
from tests.policies.kinds import KINDS, task_of
from tests.rl.contract import Task, check_policy
from vla.actions.bins import ActionBins
from vla.actions.normalize import ActionNormalizer
from vla.config import ConfigError, load
from vla.pipelines.robot.rl import freeze_for_rl
from vla.policies.adapter import action_units, make_adapter
from vla.policies.vla_policy import VlaPolicy
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.loop import LoopSettings, LoopState, train_rl
from vla.rl.rollout import collect_responses
from vla.rl.update import UpdateSettings

STEERED = ("flow_one_step", "flow_matching", "diffusion")
"""Kinds whose chain starts from noise."""
ADAPTED = [
    *(("residual", kind) for kind in ("regression", "fast", "token_parallel", *STEERED[:1])),
    ("residual", "token_autoregressive"),
    *(("noise", kind) for kind in STEERED),
]


def adapted(adapt: str, kind: str, scale: float = 0.5) -> Task:
    """The identity task of a kind, with a frozen policy under a new adapter."""
    task, _ = task_of(kind)
    base = task.policy
    head = base.head
    code = next(
        value
        for name in ("code", "normalizer", "bins")
        if (value := getattr(head, name, None)) is not None
    )
    torch.manual_seed(1)
    adapter = make_adapter(adapt, base.model, head, code, scale, 2.0)
    policy = VlaPolicy(base.model, head, True, adapter)
    policy.freeze_for_adapter()
    return dataclasses.replace(task, policy=policy)


def moved(policy: VlaPolicy) -> VlaPolicy:
    """The same policy with an actor and a critic that have something to say."""
    torch.manual_seed(2)
    with torch.no_grad():
        for last in (policy.adapter.actor.layers[-1], policy.value_head.layers[-1]):
            last.weight.normal_(std=0.3)
    return policy


@pytest.mark.parametrize(("adapt", "kind"), ADAPTED)
def test_the_contract_of_the_core(adapt, kind):
    task = adapted(adapt, kind)
    moved(task.policy)
    check_policy(task)
    assert {
        name.split(".")[0] for name, p in task.policy.named_parameters() if p.requires_grad
    } == {
        "adapter",
        "value_head",
    }


@pytest.mark.parametrize(("adapt", "kind"), ADAPTED)
def test_the_first_greedy_decisions_are_those_of_the_frozen_policy(adapt, kind):
    policy = adapted(adapt, kind).policy
    frozen = VlaPolicy(policy.model, policy.head, True)
    observation = tiny_observation([5, 2, 4, 1], padding=2)
    before = frozen.act(observation, greedy=True).action
    assert torch.equal(policy.act(observation, greedy=True).action, before)
    assert not torch.equal(moved(policy).act(observation, greedy=True).action, before)


def test_the_first_noise_is_the_noise_of_the_frozen_policy():
    """A flow without draws on the way: only its initial noise is random, in the same order."""
    policy = adapted("noise", "flow_matching").policy
    frozen = VlaPolicy(policy.model, policy.head, True)
    observation = tiny_observation([5, 2, 4, 1])
    torch.manual_seed(3)
    steered = policy.act(observation)
    torch.manual_seed(3)
    own = frozen.act(observation)
    torch.testing.assert_close(steered.action, own.action, rtol=0, atol=1e-6)
    expected = Normal(0, 1).log_prob(steered.trace["drawn"])
    torch.testing.assert_close(steered.logprobs, expected)
    assert steered.exact
    assert policy.num_draws == steered.logprobs.shape[1] == 2


def test_noise_and_corrections_keep_their_bounds():
    policy = adapted("noise", "diffusion").policy
    with torch.no_grad():
        policy.adapter.actor.layers[-1].bias.fill_(100.0)
    observation = tiny_observation([5, 2])
    greedy = policy.act(observation, greedy=True)
    torch.testing.assert_close(greedy.trace["drawn"], torch.full((2, 2), 2.0))
    policy = adapted("residual", "regression", scale=0.25).policy
    base = policy.act(observation, greedy=True).action
    with torch.no_grad():
        policy.adapter.actor.layers[-1].bias.copy_(torch.tensor([100.0, 0.5]))
    gap = (policy.act(observation, greedy=True).action - base)[..., 0]
    # Half the range of the actions times the scale, and times tanh(0.5) = 0.4621.
    units = policy.adapter.normalizer
    reach = 0.25 * (units.high[0] - units.low[0]) / 2
    torch.testing.assert_close(gap, torch.tensor([[reach, 0.46212 * reach]] * 2))


@pytest.mark.parametrize(("adapt", "kind"), ADAPTED)
def test_further_draws_come_from_one_state_and_carry_small_traces(adapt, kind):
    policy = moved(adapted(adapt, kind).policy)
    observation = tiny_observation([5, 2, 4])
    decision = policy.act(observation)
    assert policy.can_redraw
    assert ("prefix" in decision.trace) == (adapt == "noise")
    again = policy.redraw(observation, decision.trace, 4)
    assert again.action.shape == (12, 2, 1)
    assert "prefix" not in again.trace
    torch.testing.assert_close(
        again.trace["features"], decision.trace["features"].repeat_interleave(4, 0)
    )
    assert (again.action.unflatten(0, (3, 4)).std(1) > 0).all()
    rows = torch.arange(3).repeat_interleave(4)
    seen = dataclasses.replace(observation, images={})
    seen = dataclasses.replace(
        seen,
        proprio=observation.proprio[rows],
        tokens=observation.tokens[rows],
        token_mask=observation.token_mask[rows],
    )
    scores = policy.score(seen, again.trace)
    torch.testing.assert_close(scores.logprobs, again.logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.values, again.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("adapt", "kind"),
    [("noise", "flow_one_step"), ("residual", "regression"), ("residual", "token_parallel")],
)
def test_the_core_trains_it_over_a_frozen_policy(adapt, kind):
    """The reward is for actions that the frozen policy, untrained, does not take."""
    task = adapted(adapt, kind, scale=1.0)
    policy = task.policy
    observation = task.observation
    wanted = policy.act(observation, greedy=True).action + torch.tensor([0.6, -0.6])[:, None]

    def reward(decision, rows):
        return -(decision.action - wanted[rows]).abs().mean((1, 2))

    def miss():
        return -float(reward(policy.act(observation, greedy=True), torch.arange(4)).mean())

    frozen = {name: p.clone() for name, p in policy.named_parameters() if not p.requires_grad}
    before = miss()
    train_rl(
        policy,
        make_algorithm("dr_grpo", clip_low=0.2, clip_high=0.2, max_length=2),
        lambda number: collect_responses(policy, observation, 16, reward, version=number),
        torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=0.01),
        UpdateSettings(epochs=2, num_minibatches=1, micro_batch_rows=64, max_grad_norm=10.0),
        LoopSettings(num_iterations=25),
        LoopState(),
    )
    assert before == pytest.approx(0.6, abs=1e-5)
    assert miss() < (0.45 if adapt == "noise" else 0.25)
    for name, parameter in policy.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), name


def test_units_of_an_action_code():
    bins = ActionBins((1,), (0.5, 0.0), ((0.0,),), ((-2.0, 4.0),))
    assert action_units(bins) == ActionNormalizer((1,), (0.5, 0.0), (-2.0,), (4.0,))
    with pytest.raises(ValueError, match=r"rl.adapt \(residual\) needs the scale of actions"):
        action_units(object())
    policy = task_of("regression")[0].policy
    with pytest.raises(ValueError, match=r"rl.adapt \(noise\) .* RegressionHead starts from none"):
        make_adapter("noise", policy.model, policy.head, policy.head.normalizer, 0.1, 2.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["rl.adapt=noise"], r"rl.adapt \(noise\) .* policy=token starts from none: choose rl.ad"),
        (["policy=regression", "rl.adapt=noise"], r"policy=regression starts from none"),
        (["rl.adapt=lora"], r"rl.adapt \(lora\) moves an adapter, and model.lora is null"),
        (["model=smolvlm", "rl.adapt=backbone"], r"rl.adapt \(backbone\) .* choose rl.adapt=lora"),
        (["mode=text", "rl.adapt=residual"], r"rl.adapt \(residual\) is for robots"),
        (["rl.residual_scale=0.3"], "rl.residual_scale=0.3 has no effect: rl.adapt is head"),
        (["rl.noise_bound=3"], "rl.noise_bound=3 has no effect: rl.adapt is head"),
        (["model.freeze_in_rl=prefix"], "now called rl.adapt, write rl.adapt=backbone"),
    ],
)
def test_what_cannot_be_adapted_is_refused_by_name(given, message):
    with pytest.raises(ConfigError, match=message):
        load(given)


def test_an_adapter_learns_from_branches_where_its_policy_can_draw_again():
    for given in (
        ["policy=flow", "rl.adapt=noise"],
        ["policy=regression", "rl.adapt=residual"],
        ["policy.decoding=autoregressive", "rl.adapt=residual"],
        ["model=smolvlm", "policy=diffusion", "rl.adapt=noise"],
    ):
        assert load(given, pytest.fail).rl.num_branches == 8
    assert load(["model=smolvlm"]).rl.adapt == "weights"
    assert load(["model=smolvlm", "rl.adapt=lora"]).rl.adapt == "lora"


def test_settings_of_the_policys_own_draws_are_told_to_have_no_effect():
    said: list[str] = []
    load(["policy=flow", "rl.adapt=residual", "policy.noise_level=1.0"], said.append)
    assert said == [
        "policy.noise_level=1.0 has no effect: the adapter samples the decisions "
        "(rl.adapt=residual)"
    ]


@pytest.mark.parametrize("kind", KINDS[-2:])
def test_what_rl_moves(kind):
    def groups(adapt):
        policy = task_of(kind)[0].policy
        freeze_for_rl(policy, adapt)
        return {name.split(".")[0] for name, p in policy.named_parameters() if p.requires_grad}

    assert groups("weights") == {"model", "head", "value_head"}
    vision = task_of(kind)[0].policy
    freeze_for_rl(vision, "lora")
    assert not any(p.requires_grad for p in vision.model.vision.parameters())
    assert any(p.requires_grad for p in vision.model.backbone.parameters())
    assert groups("head") == (
        {"head", "value_head"} if kind == "token_parallel" else {"model", "head", "value_head"}
    )
