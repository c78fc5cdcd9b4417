"""Per-draw terms by hand, and the properties their gradients must have."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.rl.losses import (
    cispo_terms,
    clipped_terms,
    decision_log_ratio,
    draw_log_ratio,
    importance_weights,
    mean_log_ratio,
    reinforce_terms,
    value_terms,
)

close = {"rtol": 1e-5, "atol": 1e-7}
nan, inf = float("nan"), float("inf")


def log(*values):
    return torch.tensor(values).log().unsqueeze(1)


def test_clip_is_asymmetric():
    # low .2, high .28. A = 1: r 1.5 -> -1.28 (held), 1.1 -> -1.1, .5 -> -.5.
    # A = -1: r 1.5 -> 1.5, .9 -> .9, .5 -> .8 (held).
    advantages = torch.tensor([[1.0], [1.0], [1.0], [-1.0], [-1.0], [-1.0]])
    terms, clipped = clipped_terms(log(1.5, 1.1, 0.5, 1.5, 0.9, 0.5), advantages, 0.2, 0.28)
    torch.testing.assert_close(
        terms[:, 0], torch.tensor([-1.28, -1.1, -0.5, 1.5, 0.9, 0.8]), **close
    )
    assert clipped[:, 0].tolist() == [True, False, False, False, False, True]


def test_dual_clip_bounds_the_price_of_a_bad_draw():
    # c = 3, A = -2: r 5 costs 10, held at 6; r 2 costs 4. A = +2 is not touched: r 5 -> -2.4 by the
    # upper clip.
    advantages = torch.tensor([[-2.0], [-2.0], [2.0]])
    terms, clipped = clipped_terms(log(5.0, 2.0, 5.0), advantages, 0.2, 0.2, dual_clip=3.0)
    torch.testing.assert_close(terms[:, 0], torch.tensor([6.0, 4.0, -2.4]), **close)
    assert clipped[:, 0].tolist() == [True, False, True]


def test_log_ratios_with_gaps_and_what_stands_in_them():
    mask = torch.tensor([[True, False, True], [False, False, False]])
    new, old = (
        torch.tensor([[-1.0, nan, -2.0], [-inf, nan, 3.0]]),
        torch.tensor([[-1.5, -inf, -1.0], [0.0, nan, -9.0]]),
    )
    assert draw_log_ratio(new, old, mask).tolist() == [[0.5, 0.0, -1.0], [0.0, 0.0, 0.0]]
    assert decision_log_ratio(new, old, mask).tolist() == [[-0.5], [0.0]]
    assert mean_log_ratio(new, old, mask).tolist() == [[-0.25], [0.0]]


def test_log_ratio_is_clamped_at_twenty():
    one = torch.ones(1, 1, dtype=torch.bool)
    assert draw_log_ratio(torch.tensor([[0.0]]), torch.tensor([[-50.0]]), one).item() == 20.0
    assert decision_log_ratio(torch.tensor([[-50.0]]), torch.tensor([[0.0]]), one).item() == -20.0


def test_nothing_flows_from_draws_that_were_not_chosen():
    logprobs = torch.tensor([[-1.0, -inf]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    terms, _ = clipped_terms(
        draw_log_ratio(logprobs, torch.tensor([[-1.0, -2.0]]), mask), torch.ones(1, 1), 0.2, 0.2
    )
    (terms.sum() + reinforce_terms(logprobs, torch.ones(1, 1), mask).sum()).backward()
    assert logprobs.grad.tolist() == [[-2.0, 0.0]]


def test_cispo_keeps_the_gradient_and_bounds_the_weight():
    # A = 2, log pi = -1: r = 1.5 -> weight 1.28, term -1.28*2*-1 = 2.56, gradient -2.56; r = .1, no
    # lower limit: .2.
    logprobs = torch.tensor([[-1.0], [-1.0]], requires_grad=True)
    terms, clipped = cispo_terms(
        logprobs,
        log(1.5, 0.1),
        torch.full((2, 1), 2.0),
        torch.ones(2, 1, dtype=torch.bool),
        1.0,
        0.28,
    )
    torch.testing.assert_close(terms.detach(), torch.tensor([[2.56], [0.2]]), **close)
    terms.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-2.56], [-0.2]]), **close)
    assert clipped[:, 0].tolist() == [True, False]


def test_importance_weights_are_truncated_per_draw_and_per_decision():
    # ratios 1.5 and 4 (a gap between): per draw min(., 2) = 1.5, 1, 2; per decision min(6, 2) = 2.
    mask = torch.tensor([[True, False, True]])
    proximal = torch.tensor([[math.log(1.5), 7.0, math.log(4.0)]])
    weights = importance_weights(proximal, torch.zeros(1, 3), mask, 2.0, "draw")
    torch.testing.assert_close(weights, torch.tensor([[1.5, 1.0, 2.0]]), **close)
    assert importance_weights(proximal, torch.zeros(1, 3), mask, 2.0, "decision").tolist() == [
        [2.0]
    ]


def test_value_loss_takes_the_worse_of_free_and_clipped():
    # R = 1, old 0, c .2. v = .5: free .25, held (.2 - 1)^2 = .64 -> .32.
    # v = -.5: free 2.25, held (-.2 - 1)^2 = 1.44 -> 1.125. v = .1 is within the clip: .81 / 2.
    values, old, returns = torch.tensor([0.5, -0.5, 0.1]), torch.zeros(3), torch.ones(3)
    torch.testing.assert_close(
        value_terms(values, old, returns, 0.2), torch.tensor([0.32, 1.125, 0.405]), **close
    )
    torch.testing.assert_close(
        value_terms(values, old, returns, None), torch.tensor([0.125, 1.125, 0.405]), **close
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, -0.1), st.floats(-2, 2)), min_size=1, max_size=6))
def test_ratio_one_gives_the_reinforce_gradient(draws):
    """Where nothing has moved yet, every surrogate's gradient is -A grad log pi."""
    old = torch.tensor([[d[0]] for d in draws])
    advantages = torch.tensor([[d[1]] for d in draws])
    mask = torch.ones_like(old, dtype=torch.bool)

    def gradient(terms_of):
        logprobs = old.clone().requires_grad_()
        terms_of(logprobs).sum().backward()
        return logprobs.grad

    def ratio(logprobs, of=draw_log_ratio):
        return of(logprobs, old, mask)

    expected = gradient(lambda p: reinforce_terms(p, advantages, mask))
    torch.testing.assert_close(expected, -advantages)
    for terms_of in (
        lambda p: clipped_terms(ratio(p), advantages, 0.2, 0.28)[0],
        lambda p: clipped_terms(ratio(p), advantages, 0.2, 0.2, 3.0)[0],
        lambda p: clipped_terms(ratio(p, mean_log_ratio), advantages, 3e-4, 4e-4)[
            0
        ],  # one draw: the mean is the draw
        lambda p: clipped_terms(ratio(p, decision_log_ratio), advantages, 0.2, 0.2)[0],
        lambda p: cispo_terms(p, ratio(p), advantages, mask, 1.0, 0.2)[0],
    ):
        torch.testing.assert_close(gradient(terms_of), expected)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_clip_stops_only_moves_that_overshoot(advantage):
    """Beyond the clip on the improving side the gradient is 0; on the other it lives: mistakes can
    be undone."""
    overshoot = 1.5 if advantage > 0 else 0.5
    for value, alive in ((overshoot, False), (2 - overshoot, True)):
        log_ratio = torch.tensor([[math.log(value)]], requires_grad=True)
        terms, _ = clipped_terms(log_ratio, torch.tensor([[advantage]]), 0.2, 0.2)
        terms.sum().backward()
        assert (log_ratio.grad.item() != 0) == alive
