"""Every algorithm's batch and loss by hand, the rules for rows that say nothing."""

import dataclasses

import pytest
import torch

from tests.rl.toys import SETTINGS, make_rollout
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.algorithms import ALGORITHMS
from vla.rl.algorithms.dapo import overlong_penalty
from vla.rl.batch import reduction_weights
from vla.rl.losses import clip_shares
from vla.types import ActionScores

nan = float("nan")
close = {"rtol": 1e-5, "atol": 1e-7}

MASK = [[True, True], [True, False], [True, True], [True, False]]
RATIOS = torch.tensor([[1.5, 1.0], [0.7, 55.0], [1.1, 0.5], [1.4, 55.0]])


def one_success_in_four():
    """One group of four answers, of 2, 1, 2 and 1 draws; the first is right."""
    return make_rollout([1.0, 0.0, 0.0, 0.0], [0, 1, 2, 3], [0, 0, 0, 0], mask=MASK)


def loss_at_ratios(name, ratios=RATIOS, rollout=None, **settings):
    rollout = rollout or one_success_in_four()
    algorithm = make_algorithm(name, **{**SETTINGS[name], **settings})
    batch = algorithm.prepare(rollout)
    return algorithm.loss(
        batch, ActionScores(rollout.logprobs + ratios.log(), torch.ones_like(ratios))
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # A = [1.5, -.5, -.5, -.5]. Terms: [-1.5*1.28 = -1.92, -1.5], [.5*.8 = .4], [.55, .5*.8 =
        # .4], [.5*1.4 = .7]. sequence: (-3.42/2 + .4 + .95/2 + .7) / 4; token: -1.37 / 6; constant
        # over 4 draws: -1.37 / 16.
        ({"reduction": "sequence"}, -0.03375),
        ({"reduction": "token"}, -1.37 / 6),
        ({"reduction": "constant", "max_length": 4}, -1.37 / 16),
        # Dual clip 1.2 holds the last term at .5*1.2 = .6: (-1.37 - .1) / 6.
        ({"reduction": "token", "dual_clip": 1.2}, -1.47 / 6),
        # No std: A = [.75, -.25 x3], everything halves.
        ({"reduction": "token", "scale": "none"}, -1.37 / 12),
        # Entropy is 1 a draw: minus .1 of the weights' sum, which is 1.
        ({"reduction": "token", "entropy_coefficient": 0.1}, -1.37 / 6 - 0.1),
        # Ratio of the decision: 1.5 -> held 1.28: -1.92; .7 -> .4; .55 -> held .8: .4; 1.4 -> .7;
        # each a mean over 4.
        ({"reduction": "sequence", "ratio_level": "decision"}, (-1.92 + 0.4 + 0.4 + 0.7) / 4),
    ],
)
def test_grpo_by_hand(settings, expected):
    assert loss_at_ratios("grpo", **settings).loss.item() == pytest.approx(expected, rel=2e-5)


def test_grpo_counts_what_it_clipped():
    assert (
        loss_at_ratios("grpo").metrics["clip_fraction"].item() == 3
    )  # 1.5 up, .7 and .5 down, of six draws


def test_grpo_with_kl_as_a_loss_by_hand():
    # Ratio 1, ref half as likely: d = log 2 at each draw, k3 = .1931472. Terms -A; weights sum A =
    # 1.5 - .5*3 = 0 over equal sequences, so only the penalty is left: .04 * .1931472.
    rollout = one_success_in_four()
    algorithm = make_algorithm("grpo", **SETTINGS["grpo"], kl_coefficient=0.04)
    batch = algorithm.prepare(rollout, rollout.logprobs - torch.tensor(2.0).log())
    output = algorithm.loss(batch, ActionScores(rollout.logprobs))
    assert output.loss.item() == pytest.approx(0.04 * 0.1931472, rel=1e-4)
    assert output.metrics["kl_reference"].item() == pytest.approx(6 * 0.1931472, rel=1e-5)


def test_dr_grpo_by_hand():
    assert loss_at_ratios("dr_grpo").loss.item() == pytest.approx(-1.37 / 2 / 16, rel=1e-5)
    # by itself it divides by the most draws of a decision, here 2 instead of 4
    assert loss_at_ratios("dr_grpo", max_length=None).loss.item() == pytest.approx(
        -1.37 / 2 / 8, rel=1e-5
    )


def test_dapo_by_hand():
    assert loss_at_ratios("dapo").loss.item() == pytest.approx(-1.37 / 6, rel=1e-5)


def test_dapo_overlong_shaping():
    # 8 draws at most, the last 4 are the buffer: 4 -> 0, 5 -> -.25, 7 -> -.75, 8 -> -1, 12 -> -1.
    penalty = overlong_penalty(
        torch.tensor([1.0, 4.0, 5.0, 7.0, 8.0, 12.0]), max_length=8, buffer=4
    )
    assert penalty.tolist() == [0.0, 0.0, -0.25, -0.75, -1.0, -1.0]
    # Lengths 2, 1, 2, 1 of at most 2 with a buffer of 1: returns [0, 0, -1, 0], so the long failure
    # stands alone.
    algorithm = make_algorithm("dapo", clip_low=0.2, clip_high=0.2, overlong_buffer=1, max_length=2)
    batch = algorithm.prepare(one_success_in_four())
    torch.testing.assert_close(
        batch.advantages[:, 0], torch.tensor([0.5, 0.5, -1.5, 0.5]), rtol=1e-5, atol=0.0
    )


def test_gspo_by_hand():
    # s = sqrt(1.5) = 1.2247 -> 1.2: -1.8; .7 -> .8: .4; sqrt(.55) = .7416 -> .8: .4; 1.4 (A < 0,
    # free): .7.
    assert loss_at_ratios("gspo").loss.item() == pytest.approx(
        (-1.8 + 0.4 + 0.4 + 0.7) / 4, rel=1e-5
    )


def test_gspo_gradient_flows_through_the_mean_log_ratio():
    rollout = one_success_in_four()
    algorithm = make_algorithm("gspo", clip_low=0.5, clip_high=0.5)
    batch, logprobs = algorithm.prepare(rollout), (rollout.logprobs + 0.1).requires_grad_()
    algorithm.loss(batch, ActionScores(logprobs)).loss.backward()
    # d/dlogp of -A s / 4 with s = e^.1: -A e^.1 / (4 |y|): 1.5 over 2 draws, .5 over 1, .5 over 2,
    # .5 over 1.
    slope = torch.tensor(0.1).exp() / 4
    expected = slope * torch.tensor([[-0.75, -0.75], [0.5, 0.0], [0.25, 0.25], [0.5, 0.0]])
    torch.testing.assert_close(logprobs.grad, expected, rtol=1e-4, atol=1e-7)


def test_cispo_by_hand():
    # Weights min(r, 1.28): 1.28, 1; .7; 1.1, .5; 1.28. Terms -w A log pi with log pi = old + log r.
    rollout = one_success_in_four()
    logp = rollout.logprobs + RATIOS.log()
    expected = -(1.28 * 1.5 * logp[0, 0] + 1.5 * logp[0, 1])
    expected = expected + 0.5 * (
        0.7 * logp[1, 0] + 1.1 * logp[2, 0] + 0.5 * logp[2, 1] + 1.28 * logp[3, 0]
    )
    assert loss_at_ratios("cispo").loss.item() == pytest.approx(expected.item() / 6, rel=1e-5)


def test_rloo_by_hand():
    # A = [1, -1/3 x3]; ratios of decisions 1.5 -> 1.2, .7 -> .8, .55 -> .8, 1.4 free: (-1.2 + (.8 +
    # .8 + 1.4) / 3) / 4.
    assert loss_at_ratios("rloo").loss.item() == pytest.approx((-1.2 + 1.0) / 4, rel=1e-5)


def test_rloo_takes_the_summed_k1_off_the_return_before_the_baseline():
    # k1 = .5 a draw: returns 1 - .1*2*.5 = .9, -.05, -.1, -.05; leave-one-out of the first: .9 +
    # .2/3 = .9666667.
    rollout = one_success_in_four()
    batch = make_algorithm("rloo", **SETTINGS["rloo"], kl_coefficient=0.1).prepare(
        rollout, rollout.logprobs - 0.5
    )
    expected = torch.tensor([0.9666667, -0.05 - 0.25, -0.1 - 0.2666667, -0.05 - 0.25])
    torch.testing.assert_close(batch.advantages[:, 0], expected, rtol=1e-4, atol=1e-6)


def test_rloo_gradient_is_that_of_the_summed_log_prob_averaged_over_trajectories():
    rollout = one_success_in_four()
    algorithm = make_algorithm("rloo", **SETTINGS["rloo"])
    batch, logprobs = algorithm.prepare(rollout), rollout.logprobs.clone().requires_grad_()
    algorithm.loss(batch, ActionScores(logprobs)).loss.backward()
    expected = -batch.advantages * torch.tensor(MASK) / 4
    torch.testing.assert_close(logprobs.grad, expected.expand(4, 2), rtol=1e-5, atol=1e-7)


def test_maxrl_by_hand():
    # A = [3, -1 x3]; the terms of GRPO doubled; sequence: 2 * -.03375.
    assert loss_at_ratios("maxrl").loss.item() == pytest.approx(-0.0675, rel=2e-5)


def two_trajectories(**changes):
    """The rows of the GAE test: 0 terminates, 1 is truncated with V(final) = .7."""
    rollout = make_rollout(
        [0.0, 0.2, 0.0, 1.0],
        [0, 1, 1, 0],
        [0, 1],
        terminated=[True, False],
        values=torch.tensor([0.5, 0.3, 0.6, 0.4]),
        final_values=[99.0, 0.7],
    )
    return dataclasses.replace(rollout, **changes)


def test_ppo_by_hand():
    # GAE [.292, .4616, .03, .6] (test_advantages.py), not whitened; ratio 1.1: policy -1.1 *
    # mean(A) = -.38049. Values scored .1 above the old ones; returns [.792, .7616, .63, 1.0]; R - v
    # = .192, .3616, -.07, .5. Squares .036864, .13075456, .0049, .25: half their mean is .0528148;
    # coefficient .5.
    algorithm = make_algorithm("ppo", **SETTINGS["ppo"], normalize_advantages=False, value_clip=0.2)
    rollout = two_trajectories()
    batch = algorithm.prepare(rollout)
    scores = ActionScores(rollout.logprobs + torch.tensor(1.1).log(), values=rollout.values + 0.1)
    output = algorithm.loss(batch, scores)
    assert output.policy.sum().item() == pytest.approx(-1.1 * 0.3459, rel=1e-5)
    assert output.value.sum().item() == pytest.approx(0.5 * 0.422518560 / 8, rel=1e-5)
    # 1 - Var(R - V) / Var(R): R - V are the advantages.
    r, a = torch.tensor([0.792, 0.7616, 0.63, 1.0]), torch.tensor([0.292, 0.4616, 0.03, 0.6])
    assert batch.metrics["explained_variance"] == pytest.approx(
        (1 - a.var() / r.var()).item(), rel=1e-4
    )


def test_ppo_whitens_over_the_global_batch():
    batch = make_algorithm("ppo", **SETTINGS["ppo"]).prepare(two_trajectories())
    assert batch.advantages.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert batch.advantages.std().item() == pytest.approx(1.0, rel=1e-5)


def test_ppo_clips_and_discounts_the_first_draws_more():
    # Three draws; shares of the clip from .1: .1 + .9 (e^0 - 1) / (e^3 - 1) = .1, then .1 + .9 *
    # 3.481689 / 19.085537 = .2641828, then 1. With clips of .2 the ratio 1.5 is held at 1.02,
    # 1.0528366 and 1.2 where A > 0.
    assert clip_shares(3, 0.1).tolist() == pytest.approx([0.1, 0.2641828, 1.0], rel=1e-5)
    assert clip_shares(1, 0.1).tolist() == [1.0]
    settings = {
        **SETTINGS["ppo"],
        "normalize_advantages": False,
        "clip_first_draw": 0.1,
        "draw_discount": 0.9,
    }
    algorithm = make_algorithm("ppo", **settings)
    rollout = make_rollout([2.0], [0], [0], num_draws=3, values=torch.zeros(1), final_values=[0.0])
    batch = algorithm.prepare(rollout)
    assert batch.advantages[0].tolist() == pytest.approx(
        [1.62, 1.8, 2.0]
    )  # .9^2, .9 and 1 times the reward
    output = algorithm.loss(
        batch, ActionScores(rollout.logprobs + torch.tensor(1.5).log(), values=torch.zeros(1))
    )
    held = -(1.62 * 1.02 + 1.8 * 1.0528366 + 2.0 * 1.2) / 3
    assert output.policy.sum().item() == pytest.approx(held, rel=1e-5)
    with pytest.raises(ValueError, match=r"ratio_level \(decision\) has one ratio for all draws"):
        make_algorithm("ppo", **{**settings, "ratio_level": "decision"})


def test_ppo_kl_in_the_reward_along_draws():
    # One answer of draws 0 and 2 (a gap between), reward 1, V = 0, gamma = lambda = 1, beta .1, k1
    # = .5 and -.2. Rewards per draw: -.05, 1 + .02; A = [.97, 1.02].
    rollout = make_rollout(
        [1.0], [0], [0], mask=[[True, False, True]], values=torch.zeros(1, 3), final_values=[0.0]
    )
    reference = rollout.logprobs - torch.tensor([[0.5, 7.0, -0.2]])
    settings = {
        **SETTINGS["ppo"],
        "gamma": 1.0,
        "gae_lambda": 1.0,
        "kl_coefficient": 0.1,
        "normalize_advantages": False,
    }
    batch = make_algorithm("ppo", **settings).prepare(rollout, reference)
    torch.testing.assert_close(
        batch.advantages, torch.tensor([[0.97, 0.0, 1.02]]), rtol=1e-5, atol=1e-7
    )


def test_ppo_kl_in_the_reward_along_decisions_is_summed_over_a_decision():
    rollout = make_rollout(
        [1.0], [0], [0], mask=[[True, False, True]], values=torch.zeros(1), final_values=[0.0]
    )
    reference = rollout.logprobs - torch.tensor([[0.5, 7.0, -0.2]])
    settings = {**SETTINGS["ppo"], "kl_coefficient": 0.1, "normalize_advantages": False}
    assert make_algorithm("ppo", **settings).prepare(
        rollout, reference
    ).advantages.item() == pytest.approx(0.97)


def test_ppo_whitened_rewards_keep_their_mean():
    # Rewards 0, .2, 0, 1: mean .3, std .4760952; each (r - .3)/std + .3. Last row of 0 alone: A = r
    # - V there.
    algorithm = make_algorithm(
        "ppo", **SETTINGS["ppo"], normalize_advantages=False, whiten_rewards=True
    )
    batch = algorithm.prepare(two_trajectories())
    assert batch.advantages[3].item() == pytest.approx(0.7 / 0.4760952 + 0.3 - 0.4, rel=1e-5)


def test_ppo_needs_a_critic():
    with pytest.raises(ValueError, match="rollout.values.*critic"):
        make_algorithm("ppo", **SETTINGS["ppo"]).prepare(one_success_in_four())


def test_reinforce_by_hand():
    # gamma .5: trajectory 0 (rows 0, 3) pays 0, 1: to go .5, 1. Trajectory 1 (rows 1, 2): .2, 0, no
    # bootstrap.
    rollout = two_trajectories()
    settings = {"gamma": 0.5, "along": "decision"}
    plain = make_algorithm("reinforce", **settings).prepare(rollout)
    torch.testing.assert_close(plain.advantages[:, 0], torch.tensor([0.5, 0.2, 0.0, 1.0]), **close)
    centred = make_algorithm("reinforce", **settings, baseline="mean").prepare(rollout)  # mean .425
    torch.testing.assert_close(
        centred.advantages[:, 0], torch.tensor([0.075, -0.225, -0.425, 0.575]), **close
    )
    # Critic: trajectory 1 bootstraps .7: returns .2 + .25*.7 = .375, .35; minus V.
    critic = make_algorithm("reinforce", **settings, baseline="critic", value_coefficient=0.5)
    batch = critic.prepare(rollout)
    torch.testing.assert_close(
        batch.advantages[:, 0], torch.tensor([0.0, 0.075, -0.25, 0.6]), **close
    )
    output = critic.loss(batch, ActionScores(rollout.logprobs, values=rollout.values))
    expected = -(batch.advantages * rollout.logprobs).sum() / 8
    assert output.policy.sum().item() == pytest.approx(expected.item(), rel=1e-5)
    assert output.value.sum().item() == pytest.approx(
        0.5 * 0.5 * (0.075**2 + 0.25**2 + 0.6**2) / 4, rel=1e-5
    )


def test_reinforce_plus_plus_by_hand():
    # Rewards-to-go of draws are the returns: 1, 1, 0, 0, 0, 0: mean 1/3, variance (2*4/9 + 4/9)/5 =
    # 4/15.
    batch = make_algorithm("reinforce_plus_plus", **SETTINGS["reinforce_plus_plus"]).prepare(
        one_success_in_four()
    )
    high, low = (2 / 3) / (4 / 15) ** 0.5, (-1 / 3) / (4 / 15) ** 0.5
    expected = torch.tensor([[high, high], [low, 0.0], [low, low], [low, 0.0]])
    torch.testing.assert_close(batch.advantages, expected, rtol=1e-5, atol=1e-7)


def test_reinforce_plus_plus_with_baseline_by_hand():
    # Two groups: returns 1, 0 (mean .5) and 4, 2 (mean 3): .5, -.5, 1, -1; unbiased variance 2.5/3.
    rollout = make_rollout([1.0, 0.0, 4.0, 2.0], [0, 1, 2, 3], [0, 0, 1, 1])
    settings = {**SETTINGS["reinforce_plus_plus"], "along": "decision", "baseline": "group"}
    batch = make_algorithm("reinforce_plus_plus", **settings).prepare(rollout)
    expected = torch.tensor([0.5, -0.5, 1.0, -1.0]) / (2.5 / 3) ** 0.5
    torch.testing.assert_close(batch.advantages[:, 0], expected, rtol=1e-5, atol=1e-7)


def test_reduction_weights_of_unequal_trajectories():
    # Trajectory 0: rows 0 and 2 with 2 + 1 draws; 1: row 1 with 1 draw; 2 does not count.
    mask = torch.tensor([[True, True], [False, True], [True, False], [True, True]])
    trajectory, keep = torch.tensor([0, 1, 0, 2]), torch.tensor([True, True, False])

    def weights(reduction, max_length=None):
        return reduction_weights(mask, trajectory, keep, reduction, max_length)

    q, s = 1 / 4, 1 / 6
    torch.testing.assert_close(weights("token"), torch.tensor([[q, q], [0, q], [q, 0], [0, 0]]))
    torch.testing.assert_close(
        weights("sequence"), torch.tensor([[s, s], [0, 0.5], [s, 0], [0, 0]])
    )
    torch.testing.assert_close(
        weights("constant", 8), torch.tensor([[1, 1], [0, 1], [1, 0], [0, 0]]) / 16
    )


GROUPED = [name for name in ALGORITHMS if name not in ("ppo", "reinforce", "reinforce_plus_plus")]


@pytest.mark.parametrize("name", GROUPED)
def test_rows_that_say_nothing_leave_every_denominator(name):
    """A singleton, equal returns and an unscorable answer beside a good group: the loss of the good
    one alone."""
    settings = SETTINGS[name]
    alone = make_algorithm(name, **settings)
    expected = loss_at_ratios(name).loss.item()
    mask = [*MASK, [True, True], [True, True], [True, True], [True, True]]
    crowd = make_rollout(
        [1.0, 0, 0, 0, 1.0, 0.5, 0.5, nan], list(range(8)), [0, 0, 0, 0, 1, 2, 2, 3], mask=mask
    )
    crowd = dataclasses.replace(
        crowd, logprobs=torch.cat([one_success_in_four().logprobs, crowd.logprobs[4:]])
    )
    batch = alone.prepare(crowd)
    assert batch.active_rows.tolist() == [0, 1, 2, 3]
    moved = crowd.logprobs + torch.cat([RATIOS, torch.full((4, 2), 1.7)]).log()
    assert alone.loss(batch, ActionScores(moved)).loss.item() == pytest.approx(expected, rel=1e-6)
    assert batch.metrics["trajectories_unscorable"] == 1
    if name != "rloo":
        assert batch.metrics["groups_singleton"] == 1


@pytest.mark.parametrize("name", ["ppo", "reinforce", "reinforce_plus_plus"])
def test_an_unscorable_trajectory_leaves_the_others_as_they_are(name):
    algorithm = make_algorithm(name, **SETTINGS[name])
    values = torch.tensor([0.5, 0.3, 0.6, 0.4, 0.2])
    common = {
        "values": values[:4] if name == "ppo" else None,
        "final_values": [0.0, 0.0] if name == "ppo" else None,
    }
    clean = make_rollout([0.0, 0.2, 0.0, 1.0], [0, 1, 1, 0], [0, 1], **common)
    common = {
        "values": values if name == "ppo" else None,
        "final_values": [0.0] * 3 if name == "ppo" else None,
    }
    dirty = make_rollout([0.0, 0.2, 0.0, 1.0, nan], [0, 1, 1, 0, 2], [0, 1, 2], **common)
    before, after = algorithm.prepare(clean), algorithm.prepare(dirty)
    torch.testing.assert_close(after.advantages[:4], before.advantages)
    torch.testing.assert_close(after.weights[:4], before.weights)
    assert after.active_rows.tolist() == [0, 1, 2, 3]
    assert not after.advantages.isnan().any()
    assert after.metrics["trajectories_unscorable"] == 1


@pytest.mark.parametrize("name", ALGORITHMS)
def test_rows_that_were_not_chosen_change_nothing(name):
    algorithm = make_algorithm(name, **SETTINGS[name])
    mask = [[True, True], [True, False], [True, True], [False, True], [False, False]]
    critic = (
        {"values": torch.tensor([0.5, 0.3, 0.6, 0.4]), "final_values": [0.0, 0.0]}
        if name == "ppo"
        else {}
    )
    short = make_rollout([1.0, 0.0, 0.0, 0.0], [0, 1, 0, 1], [0, 0], mask=mask[:4], **critic)
    if critic:
        critic["values"] = torch.tensor([0.5, 0.3, 0.6, 0.4, 7.0])
    long = make_rollout([1.0, 0.0, 0.0, 0.0, 0.0], [0, 1, 0, 1, 0], [0, 0], mask=mask, **critic)
    before, after = algorithm.prepare(short), algorithm.prepare(long)
    assert torch.equal(after.weights[:4], before.weights)
    assert not after.weights[4].any()
    assert torch.equal(after.advantages[:4], before.advantages)
    assert 4 not in after.active_rows
