import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.preference.kto import balanced_weights, kto_baseline, kto_terms, mismatched_prompts
from vla.preference.listwise import (
    best_and_worst_index,
    bradley_terry_terms,
    pairwise_terms,
    plackett_luce_terms,
)
from vla.preference.pairwise import dpo_terms, ipo_terms, log_odds, orpo_terms, simpo_terms


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


# Policy: chosen -10, rejected -12. Reference: chosen -11, rejected -11. h = (-10 + 11) - (-12 + 11)
# = 1 - (-1) = 2.
PAIR = (t(-10.0), t(-12.0), t(-11.0), t(-11.0))


def test_dpo_by_hand():
    # beta h = .2; -log sigma(.2) = log(1 + e^-.2) = log 1.8187308 = .5981389
    torch.testing.assert_close(dpo_terms(*PAIR, beta=0.1), t(0.5981389), rtol=1e-6, atol=0)
    # a policy equal to its reference: log 2
    torch.testing.assert_close(dpo_terms(*(t(-5.0),) * 4, beta=0.3), t(math.log(2)))


def test_conservative_dpo_by_hand():
    # .9 * .5981389 + .1 * (-log sigma(-.2) = .7981389) = .6181389
    torch.testing.assert_close(
        dpo_terms(*PAIR, beta=0.1, label_smoothing=0.1), t(0.6181389), rtol=1e-6, atol=0
    )


def test_the_gradient_of_dpo_is_that_of_the_paper():
    # d/d log pi(c) = -beta sigma(-beta h) = -.1 * sigma(-.2) = -.1 * .450166 = -.0450166, and + for
    # the rejected one (eq. 7)
    chosen, rejected = PAIR[0].clone().requires_grad_(), PAIR[1].clone().requires_grad_()
    dpo_terms(chosen, rejected, *PAIR[2:], beta=0.1).sum().backward()
    torch.testing.assert_close(chosen.grad, t(-0.0450166), rtol=1e-5, atol=0)
    torch.testing.assert_close(rejected.grad, t(0.0450166), rtol=1e-5, atol=0)


def test_ipo_by_hand():
    # (2 - 1 / (2 * .1))^2 = (2 - 5)^2 = 9; at h = 5 nothing is left to do
    torch.testing.assert_close(ipo_terms(*PAIR, beta=0.1), t(9.0))
    torch.testing.assert_close(ipo_terms(t(5.0), t(0.0), t(0.0), t(0.0), beta=0.1), t(0.0))


def test_simpo_by_hand():
    # 2 (-1 + 1.5) - .6 = .4; log(1 + e^-.4) = log 1.67032 = .5130153
    torch.testing.assert_close(
        simpo_terms(t(-1.0), t(-1.5), 2.0, 0.6), t(0.5130153), rtol=1e-6, atol=0
    )


def test_orpo_by_hand():
    # p_c = .5: odds 1, log odds 0. p_r = .2: odds .25, log odds -1.386294.
    # -log .5 + .1 log(1 + e^-1.386294) = .693147 + .1 * log 1.25 = .693147 + .0223144 = .7154616
    terms = orpo_terms(t(0.5).log(), t(0.2).log(), weight=0.1)
    torch.testing.assert_close(terms, t(0.7154616), rtol=1e-6, atol=0)
    torch.testing.assert_close(log_odds(t(0.2).log()), t(-1.3862944), rtol=1e-6, atol=0)
    # exact near 1, where 1 - p vanishes in float32
    near = log_odds(torch.tensor([-1e-8]))
    torch.testing.assert_close(near, torch.tensor([-math.log(1e-8)]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("chosen", [0.0, -1e-9, -1.0, -80.0])
@pytest.mark.parametrize("rejected", [0.0, -1e-9, -1.0, -80.0])
def test_orpo_is_finite_where_a_completion_is_certain(chosen, rejected):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        means = torch.tensor([[chosen], [rejected]], dtype=dtype, requires_grad=True)
        terms = orpo_terms(means[0], means[1], weight=0.1)
        terms.sum().backward()
        assert terms.isfinite().all()
        assert means.grad.isfinite().all()
        assert means.grad[0] <= -1  # the chosen one is made likelier all the same


def test_a_margin_moves_the_loss_of_dpo_and_of_the_reward_model():
    # h = 2 and 1, beta = .5: -log sigma(1 - .4) = log(1 + e^-.6) = .4374879; without a margin log(1
    # + e^-.5) = .4740770
    pairs = (t(-1.0, -1.0), t(-3.0, -2.0), t(-2.0, -2.0), t(-2.0, -2.0))
    terms = dpo_terms(*pairs, beta=0.5, target_margin=t(0.4, 0.0))
    torch.testing.assert_close(terms, t(0.4374879, 0.4740770), rtol=1e-6, atol=0)
    # e = .1: .9 * .4374879 + .1 log(1 + e^.6) = .3937391 + .1 * 1.0374879
    smooth = dpo_terms(*pairs, beta=0.5, label_smoothing=0.1, target_margin=t(0.4, 0.0))
    torch.testing.assert_close(smooth[0], t(0.4974879)[0], rtol=1e-6, atol=0)
    # rewards 2 and 1.5, margin .5: log 2; the second ranking asks for none
    rewards, present = torch.tensor([[2.0, 1.5], [2.0, 1.5]]), torch.ones(2, 2, dtype=torch.bool)
    torch.testing.assert_close(
        pairwise_terms(rewards, present, margins=t(0.5, 0.0)),
        t(math.log(2), 0.4740770),
        rtol=1e-6,
        atol=0,
    )


def test_kto_by_hand():
    # liked: r = 2, z = .5, beta = .1: 1 - sigma(.15) = .4625702; disliked: r = -1: 1 - sigma(.1 *
    # 1.5) = .4625702
    terms = kto_terms(
        t(-8.0, -11.0), t(-10.0, -10.0), torch.tensor([True, False]), t(0.5)[0], beta=0.1
    )
    torch.testing.assert_close(terms, t(0.4625702, 0.4625702), rtol=1e-6, atol=0)
    weighted = kto_terms(
        t(-8.0, -11.0), t(-10.0, -10.0), torch.tensor([True, False]), t(0.5)[0], 0.1, 2.0, 3.0
    )
    torch.testing.assert_close(weighted, t(0.9251404, 1.3877106), rtol=1e-6, atol=0)


def test_the_baseline_of_kto():
    torch.testing.assert_close(kto_baseline(t(-3.0, -4.0), t(-4.0, -4.5)), t(0.75)[0])
    assert kto_baseline(t(-5.0, -6.0), t(-4.0, -4.5)) == 0
    logprobs = t(-3.0, -4.0).requires_grad_()
    assert not kto_baseline(logprobs, t(-4.0, -4.5)).requires_grad
    assert mismatched_prompts(list("aab")) == [2, 2, 0]
    with pytest.raises(ValueError, match="batch_size .1. must be at least 2 for kto"):
        kto_baseline(t(-3.0), t(-4.0))


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_weights_of_kto_keep_the_classes_in_balance(num_liked, num_disliked):
    liked, disliked = balanced_weights(num_liked, num_disliked)
    assert min(liked, disliked) == 1.0
    assert 1 - 1e-9 <= liked * num_liked / (disliked * num_disliked) <= 4 / 3 + 1e-9


def test_plackett_luce_by_hand():
    # scores 1, 0, 0: P = e / (e + 2) * 1 / 2 = .5761168 * .5 = .2880584; -log = 1.2445919
    everyone = torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(
        plackett_luce_terms(t(1.0, 0.0, 0.0)[None], everyone), t(1.2445919), rtol=1e-6, atol=0
    )
    # a list of two in a batch of three is the pairwise loss: -log sigma(1) = .3132617
    two = torch.tensor([[True, True, False]])
    torch.testing.assert_close(
        plackett_luce_terms(t(1.0, 0.0, 99.0)[None], two), t(0.3132617), rtol=1e-6, atol=0
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(0, 999))
def test_plackett_luce_sums_to_one_over_all_rankings_and_ignores_what_is_absent(size, seed):
    from itertools import permutations

    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, generator=generator, dtype=torch.float64)
    everyone = torch.ones(1, size, dtype=torch.bool)
    total = sum(
        torch.exp(-plackett_luce_terms(scores[list(order)][None], everyone))
        for order in permutations(range(size))
    )
    torch.testing.assert_close(total, t(1.0))
    padded = torch.cat([scores, torch.full((2,), 7.0, dtype=torch.float64)])[None].requires_grad_()
    present = torch.arange(size + 2)[None] < size
    terms = plackett_luce_terms(padded, present)
    torch.testing.assert_close(terms, plackett_luce_terms(scores[None], everyone))
    terms.sum().backward()
    assert padded.grad.isfinite().all()
    assert (padded.grad[0, size:] == 0).all()


def test_bradley_terry_by_hand():
    # r_c - r_r = .5: log(1 + e^-.5) = .4740770; margin .5 makes it log 2; reward_centering_weight
    # .01 (2 + 1.5)^2 = .1225
    torch.testing.assert_close(bradley_terry_terms(t(2.0), t(1.5)), t(0.4740770), rtol=1e-6, atol=0)
    torch.testing.assert_close(bradley_terry_terms(t(2.0), t(1.5), margin=t(0.5)), t(math.log(2)))
    torch.testing.assert_close(
        bradley_terry_terms(t(2.0), t(1.5), reward_centering_weight=0.01),
        t(0.5965770),
        rtol=1e-6,
        atol=0,
    )


def test_all_pairs_of_a_ranking_weigh_as_much_as_one_pair():
    rewards = t([2.0, 1.5, 0.0], [2.0, 1.5, float("nan")])
    present = torch.tensor([[True, True, True], [True, True, False]])
    # -log sigma of .5, 2 and 1.5
    expected = [(0.4740770 + 0.1269280 + 0.2014133) / 3, 0.4740770]
    torch.testing.assert_close(pairwise_terms(rewards, present), t(*expected), rtol=1e-6, atol=0)
    pair = rewards[:, :2]
    same = bradley_terry_terms(pair[:, 0], pair[:, 1], reward_centering_weight=0.01)
    torch.testing.assert_close(pairwise_terms(pair, present[:, :2], 0.01), same)


def test_best_and_worst():
    assert best_and_worst_index(t(0.2, 0.9, 0.1)) == (1, 2)
    assert best_and_worst_index(t(0.2, 0.9, 0.1), min_margin=0.8) is None
    assert best_and_worst_index(t(0.5, 0.5)) is None
    assert best_and_worst_index(t(0.5, math.nan)) is None


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="beta .0.0. must be positive"):
        dpo_terms(*PAIR, beta=0.0)
    with pytest.raises(ValueError, match="label_smoothing .0.5. must lie in"):
        dpo_terms(*PAIR, beta=0.1, label_smoothing=0.5)
    with pytest.raises(ValueError, match="weight .0.0. must be positive"):
        orpo_terms(t(-1.0), t(-2.0), 0.0)
    with pytest.raises(ValueError, match="3 liked and 0 disliked"):
        balanced_weights(3, 0)
