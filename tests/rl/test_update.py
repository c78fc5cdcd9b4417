"""An update: how a batch is cut changes nothing, what it reports is right, and what breaks it is
named."""

import copy
import dataclasses
import math

import pytest
import torch

from tests.rl.toys import (
    SETTINGS,
    Descent,
    GaussianPolicy,
    TokenPolicy,
    gaussian_rollout,
    make_rollout,
    text_observation,
)
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.algorithms import ALGORITHMS
from vla.rl.diagnostics import NonFiniteError
from vla.rl.update import UpdateSettings, minibatches, shuffle_units, update
from vla.types import Decision

WHOLE = UpdateSettings(epochs=1, num_minibatches=1, micro_batch_rows=1000)


def step(policy, name, settings, rollout, lr=1.0, **kwargs):
    """The change of every parameter by one update with plain gradient descent, and the metrics."""
    policy = copy.deepcopy(policy)
    before = [p.detach().clone() for p in policy.parameters()]
    algorithm = make_algorithm(name, **{**SETTINGS[name], **kwargs.pop("algorithm", {})})
    generator = torch.Generator().manual_seed(0)
    descent = Descent(policy.parameters(), lr)
    metrics = update(policy, algorithm, rollout, descent, settings, generator=generator, **kwargs)
    return [after.detach() - b for after, b in zip(policy.parameters(), before)], metrics


@pytest.mark.parametrize("name", ALGORITHMS)
def test_micro_batches_change_neither_loss_nor_gradient(name):
    policy = GaussianPolicy().double()
    rollout = gaussian_rollout(policy)
    whole, metrics = step(policy, name, WHOLE, rollout)
    assert any(change.abs().max() > 1e-4 for change in whole)
    for rows in (1, 5):
        cut, cut_metrics = step(
            policy, name, dataclasses.replace(WHOLE, micro_batch_rows=rows), rollout
        )
        for a, b in zip(cut, whole):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        for key in metrics:
            assert cut_metrics[key] == pytest.approx(metrics[key], rel=1e-9, nan_ok=True), key


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_minibatches_of_one_pass_add_up_to_the_whole(name):
    """With a vanishing step the changes of all minibatches average to the change of one whole
    batch."""
    policy = GaussianPolicy().double()
    rollout = gaussian_rollout(policy)
    whole, _ = step(policy, name, WHOLE, rollout, lr=1e-6)
    cut, metrics = step(
        policy, name, dataclasses.replace(WHOLE, num_minibatches=4), rollout, lr=1e-6
    )
    assert metrics["num_optimizer_steps"] == 4
    for a, b in zip(cut, whole):
        torch.testing.assert_close(a / 4, b, rtol=1e-4, atol=1e-12)


def test_minibatches_keep_what_is_scored_together_together():
    unit = torch.tensor([7, 7, 7, 2, 2, 5, 9, 9, 4])
    rows = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8])  # row 4 carries no gradient
    parts = minibatches(rows, unit, 2, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(parts).tolist()) == rows.tolist()
    found = [set(unit[part].tolist()) for part in parts]
    assert not found[0] & found[1]
    assert sorted(map(len, found)) == [2, 3]
    others = [
        minibatches(rows, unit, 2, torch.Generator().manual_seed(seed))[0].tolist()
        for seed in range(8)
    ]
    assert any(other != parts[0].tolist() for other in others)
    assert all(len(part) <= 3 for part in minibatches(rows, unit, 7, torch.Generator()))


def test_only_trajectories_of_one_decision_are_kept_together():
    rollout = gaussian_rollout(GaussianPolicy())
    assert rollout.num_trajectories < len(rollout.trajectory)
    assert len(shuffle_units(rollout).unique()) == len(rollout.trajectory)
    text = make_rollout([1.0, 0.0, 1.0, 0.0], [0, 1, 2, 3], [0, 0, 1, 1])
    assert shuffle_units(text).tolist() == [0, 0, 1, 1]


def test_one_pass_reports_the_loss_of_the_batch():
    policy = GaussianPolicy()
    rollout = gaussian_rollout(policy)
    algorithm = make_algorithm("ppo", **SETTINGS["ppo"])
    output = algorithm.loss(
        algorithm.prepare(rollout), policy.score(rollout.observation, rollout.trace)
    )
    _, metrics = step(policy, "ppo", dataclasses.replace(WHOLE, epochs=3), rollout, lr=0.0)
    assert metrics["policy_loss"] == pytest.approx(output.policy.sum().item(), rel=1e-4)
    assert metrics["value_loss"] == pytest.approx(output.value.sum().item(), rel=1e-4)


def test_diagnostics_by_hand():
    # Old log-probs are the scored ones minus log r with r = 2, .5, 1, 1: all advantages counted,
    # GRPO clip .2/.28.
    policy = GaussianPolicy(critic=False)
    rollout = make_rollout([1.0, 0.0, 0.0, 1.0], [0, 1, 2, 3], [0, 0, 1, 1], num_draws=1)
    ratios = torch.tensor([[2.0], [0.5], [1.0], [1.0]])
    scores = policy.score(rollout.observation, rollout.trace)
    rollout = dataclasses.replace(rollout, logprobs=scores.logprobs.detach() - ratios.log())
    _, metrics = step(policy, "grpo", WHOLE, rollout)
    log2 = math.log(2)
    assert metrics["ratio_max"] == pytest.approx(2.0, rel=1e-5)
    assert metrics["ratio_min"] == pytest.approx(0.5, rel=1e-5)
    assert metrics["clip_fraction"] == pytest.approx(0.5)  # 2 with A > 0 and .5 with A < 0
    # k3 of old -> new: r - 1 - log r: (1 - log 2) + (-.5 + log 2) = .5, over 4 draws.
    assert metrics["approx_kl"] == pytest.approx(0.125, rel=1e-4)
    # (2 + .5 + 1 + 1)^2 / (4 (4 + .25 + 1 + 1)) = 20.25 / 25
    assert metrics["effective_sample_size"] == pytest.approx(0.81, rel=1e-5)
    assert metrics["logprob_gap_max"] == pytest.approx(log2, rel=1e-5)
    assert metrics["logprob_gap_mean"] == pytest.approx(log2 / 2, rel=1e-5)
    assert metrics["entropy"] == pytest.approx(0.5 * math.log(2 * math.pi * math.e) - 0.5, rel=1e-5)
    assert metrics["num_optimizer_steps"] == metrics["stopped_early"] + 1 == 1


def test_gradient_norm_is_logged_before_it_is_clipped():
    policy = GaussianPolicy()
    rollout = gaussian_rollout(policy)
    free, metrics = step(policy, "ppo", WHOLE, rollout)
    norm = torch.cat([c.flatten() for c in free]).norm().item()
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    clipped, metrics = step(
        policy, "ppo", dataclasses.replace(WHOLE, max_grad_norm=norm / 4), rollout
    )
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    for a, b in zip(clipped, free):
        torch.testing.assert_close(a, b / 4, rtol=1e-4, atol=1e-7)


def test_early_stop_on_kl_takes_no_step_beyond():
    policy = GaussianPolicy()
    rollout = gaussian_rollout(policy)
    change, metrics = step(
        policy, "grpo", dataclasses.replace(WHOLE, epochs=5, target_kl=1e-6), rollout
    )
    assert metrics["stopped_early"] == 1.0
    assert (
        metrics["num_optimizer_steps"] == 0.0
    )  # the rollout's log-probs were already further away
    assert not any(c.any() for c in change)


def test_critic_warmup_moves_the_critic_alone():
    policy = GaussianPolicy()
    rollout = gaussian_rollout(policy)
    names = [n for n, _ in policy.named_parameters()]
    change, _ = step(policy, "ppo", WHOLE, rollout, critic_warmup=True)
    moved = {n for n, c in zip(names, change) if c.any()}
    assert moved == {"critic.weight", "critic.bias"}
    full, _ = step(policy, "ppo", WHOLE, rollout)
    for name, a, b in zip(names, change, full):
        if name.startswith("critic"):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "settings", "kwargs", "message"),
    [
        ("grpo", {"kl_coefficient": 0.1}, {}, "kl_coefficient"),
        ("grpo", {}, {"critic_warmup": True}, "num_critic_warmup_iterations"),
    ],
)
def test_what_is_missing_is_named(name, settings, kwargs, message):
    policy = GaussianPolicy()
    with pytest.raises(ValueError, match=message):
        step(policy, name, WHOLE, gaussian_rollout(policy), algorithm=settings, **kwargs)


def test_nothing_to_learn_from_is_no_error():
    policy = GaussianPolicy()
    rollout = gaussian_rollout(policy, rewards=[0.0] * 12)
    change, metrics = step(policy, "grpo", WHOLE, rollout)
    assert metrics["rows_active"] == metrics["num_optimizer_steps"] == 0.0
    assert metrics["groups_without_variance"] == 2.0
    assert not any(c.any() for c in change)


class Recording(GaussianPolicy):
    """Remembers how many rows it was asked to score."""

    def score(self, observation, trace):
        self.scored = getattr(self, "scored", 0) + len(trace["draw"])
        return super().score(observation, trace)


def test_rows_without_gradient_are_never_scored():
    policy = Recording(critic=False)
    # Rows 0 to 6 are group 0, whose four trajectories all return .5; the five rows of group 1
    # differ.
    rewards = [0.5, 0.25, 0.25, 0.5, 0.25, 0.125, 0.125, 1.0, 0.0, 0.0, 0.0, 0.0]
    rollout = gaussian_rollout(GaussianPolicy(critic=False), rewards=rewards, critic=False)
    update(
        policy,
        make_algorithm("grpo", **SETTINGS["grpo"]),
        rollout,
        Descent(policy.parameters()),
        WHOLE,
        generator=torch.Generator(),
    )
    assert policy.scored == 5


class Breaking(GaussianPolicy):
    """Gives NaN log-probs, or NaN gradients, for rows whose state is exactly 7."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def score(self, observation, trace):
        scores = super().score(observation, trace)
        bad = (observation.proprio[:, 0] == 7.0).nonzero().squeeze(1)
        poison = torch.full((len(bad), 1), float("nan"))
        if self.how == "gradient":  # the square root of 0 is fine, its slope is not
            poison = self.mean.weight.sum().abs().sqrt().expand(len(bad), 1)
        if len(bad):
            return dataclasses.replace(scores, logprobs=scores.logprobs.index_add(0, bad, poison))
        return scores


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_update_and_is_named(how):
    policy = Breaking(how)
    rollout = gaussian_rollout(GaussianPolicy())
    proprio = rollout.observation.proprio.clone()
    proprio[[3, 8]] = 7.0
    rollout = dataclasses.replace(
        rollout, observation=dataclasses.replace(rollout.observation, proprio=proprio)
    )
    before = copy.deepcopy(policy.state_dict())
    settings = dataclasses.replace(WHOLE, micro_batch_rows=4)
    with pytest.raises(NonFiniteError, match=f"{how} is not finite: rollout rows 3, 8") as error:
        update(
            policy,
            make_algorithm("ppo", **SETTINGS["ppo"]),
            rollout,
            Descent(policy.parameters()),
            settings,
            generator=torch.Generator().manual_seed(0),
        )
    assert sorted(error.value.rows) == [3, 8]
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in policy.parameters())


def test_importance_weights_carry_the_gap_to_the_acting_policy():
    """Old log-probs become the present ones (ratio 1); the truncated weight multiplies each draw's
    gradient."""
    policy = TokenPolicy(critic=False)
    observation = text_observation(torch.arange(4).reshape(4, 1))
    decision: Decision = policy.act(observation)
    rollout = make_rollout([1.0, 0.0, 0.0, 1.0], [0, 1, 2, 3], [0, 0, 1, 1], num_draws=1)
    factors = torch.tensor([[1.5], [4.0], [0.5], [1.0]])
    rollout = dataclasses.replace(
        rollout,
        observation=observation,
        trace=decision.trace,
        logprobs=decision.logprobs - factors.log(),
    )
    plain, _ = step(policy, "grpo", WHOLE, dataclasses.replace(rollout, logprobs=decision.logprobs))
    settings = dataclasses.replace(WHOLE, importance_cap=2.0)
    weighted, metrics = step(policy, "grpo", settings, rollout)
    # Each row of the logits belongs to one draw: its change is multiplied by min(factor, 2).
    torch.testing.assert_close(
        weighted[0][:4], plain[0][:4] * factors.clamp(max=2.0), rtol=1e-5, atol=1e-7
    )
    assert metrics["ratio_min"] == pytest.approx(1.0, rel=1e-6)
    assert metrics["importance_weight_mean"] == pytest.approx((1.5 + 2 + 0.5 + 1) / 4, rel=1e-5)
    assert metrics["logprob_gap_max"] == pytest.approx(math.log(4), rel=1e-5)
