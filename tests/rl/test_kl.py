"""KL: numbers by hand, the sign, and which estimators hold a policy back when they are the loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rl.toys import make_rollout
from vla.rl.kl import AdaptiveKL, kl_terms, masked_kl
from vla.rl.rewards import trajectory_kl


def test_estimators_by_hand():
    # d = log 2 = .6931472: k1 = d, k2 = d^2 / 2 = .2402265, k3 = 1/2 - 1 + d = .1931472.
    d = torch.tensor([2.0]).log()
    for estimator, expected in (("k1", 0.6931472), ("k2", 0.2402265), ("k3", 0.1931472)):
        torch.testing.assert_close(
            kl_terms(d, estimator), torch.tensor([expected]), rtol=1e-5, atol=0.0
        )
    # d = -log 2: k3 = 2 - 1 - .6931472 = .3068528, still positive; k1 is negative.
    torch.testing.assert_close(kl_terms(-d, "k3"), torch.tensor([0.3068528]), rtol=1e-5, atol=0.0)


def expected_estimate(logits, reference, estimator):
    """Expectation under pi (held fixed, as draws are) of the estimator; differentiable through log
    pi only."""
    logp, ref = torch.log_softmax(logits, 0), torch.log_softmax(reference, 0)
    return (logp.exp().detach() * kl_terms(logp - ref, estimator)).sum()


logit_pairs = st.tuples(*[st.lists(st.floats(-2, 2), min_size=3, max_size=3)] * 2)


@settings(max_examples=20, deadline=None)
@given(logit_pairs)
def test_k1_and_k3_are_unbiased_and_the_sign_is_right(pair):
    logits, reference = (torch.tensor(x, dtype=torch.float64) for x in pair)
    logp, ref = torch.log_softmax(logits, 0), torch.log_softmax(reference, 0)
    exact = (logp.exp() * (logp - ref)).sum()
    torch.testing.assert_close(expected_estimate(logits, reference, "k1"), exact)
    torch.testing.assert_close(expected_estimate(logits, reference, "k3"), exact)
    assert exact >= -1e-12


@settings(max_examples=20, deadline=None)
@given(logit_pairs)
def test_gradients_of_a_kl_loss(pair):
    """k1's gradient never mentions the reference (and is 0 on average); k2's is that of KL(pi ||
    ref)."""
    reference = torch.tensor(pair[1], dtype=torch.float64)
    logits = torch.tensor(pair[0], dtype=torch.float64, requires_grad=True)

    def gradient(loss):
        return torch.autograd.grad(loss, logits)[0]

    def k1_of_each_draw(held_to):
        return [
            gradient(kl_terms(torch.log_softmax(logits, 0) - held_to, "k1")[draw])
            for draw in range(3)
        ]

    ref = torch.log_softmax(reference, 0)
    assert all(map(torch.equal, k1_of_each_draw(ref), k1_of_each_draw(3.0 * ref - 1.0)))
    torch.testing.assert_close(
        gradient(expected_estimate(logits, reference, "k1")), torch.zeros_like(ref)
    )
    logp = torch.log_softmax(logits, 0)
    exact = gradient((logp.exp() * (logp - ref)).sum())
    torch.testing.assert_close(gradient(expected_estimate(logits, reference, "k2")), exact)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_descending_a_kl_loss_pulls_towards_the_reference(estimator):
    logits, reference = (
        torch.tensor([2.0, 0.0, -1.0], requires_grad=True),
        torch.tensor([0.0, 0.5, 0.0]),
    )
    gaps = []
    for _ in range(200):
        (gradient,) = torch.autograd.grad(expected_estimate(logits, reference, estimator), logits)
        logits.data -= 0.5 * gradient
        gaps.append((torch.softmax(logits, 0) - torch.softmax(reference, 0)).abs().max().item())
    assert gaps[-1] < 0.02 < gaps[0]


def test_kl_of_a_rollout_counts_chosen_draws_and_sums_over_a_trajectory():
    rollout = make_rollout(
        [0.0, 0.0, 0.0], [0, 0, 1], [0, 1], mask=[[True, False], [True, True], [False, True]]
    )
    reference = rollout.logprobs - torch.tensor([[0.1, 9.0], [0.2, 0.3], [9.0, 0.4]])
    kl = masked_kl(rollout.logprobs, reference, rollout.mask, "k1")
    torch.testing.assert_close(
        kl, torch.tensor([[0.1, 0.0], [0.2, 0.3], [0.0, 0.4]]), rtol=1e-4, atol=1e-6
    )
    assert trajectory_kl(rollout, reference) == pytest.approx((0.6 + 0.4) / 2, rel=1e-5)


def test_adaptive_controller_by_hand():
    # Ziegler's values. KL 9 against 6: error +.5, held at .2; 256 trajectories of 10000: .15 (1 +
    # .2*.0256) = .150768.
    start = AdaptiveKL(0.15, target=6.0, horizon=10_000.0)
    assert start.update(9.0, 256).coefficient == pytest.approx(0.150768, rel=1e-9)
    assert start.update(0.0, 256).coefficient == pytest.approx(0.149232, rel=1e-9)
    assert start.update(6.6, 1000).coefficient == pytest.approx(0.15 * 1.01, rel=1e-9)
    assert start.update(6.0, 256) == start


def test_adaptive_controller_refuses_a_target_of_zero():
    with pytest.raises(ValueError, match="kl_target"):
        AdaptiveKL(0.1, 0.0, 100.0)
