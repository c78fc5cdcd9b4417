import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.generation.sampling import (
    Sampling,
    draw_by_inverse_cdf,
    pack_support,
    shape_logits,
    unpack_support,
)


def test_temperature_top_k_and_top_p_by_hand():
    # softmax of log([.5, .3, .15, .05]) is [.5, .3, .15, .05]
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    # temperature .5 squares the probabilities: [.25, .09, .0225, .0025] / .365
    squared = shape_logits(logits, Sampling(temperature=0.5)).softmax(-1)
    torch.testing.assert_close(squared, torch.tensor([[0.25, 0.09, 0.0225, 0.0025]]) / 0.365)
    # top 2: [.5, .3] / .8
    top2 = shape_logits(logits, Sampling(top_k=2)).softmax(-1)
    torch.testing.assert_close(top2, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    # nucleus .81: .5 + .3 = .8 does not reach it, the third token is needed: [.5, .3, .15] / .95
    nucleus = shape_logits(logits, Sampling(top_p=0.81)).softmax(-1)
    torch.testing.assert_close(nucleus, torch.tensor([[0.5, 0.3, 0.15, 0.0]]) / 0.95)
    # nucleus .4 is reached by the first token alone
    assert shape_logits(logits, Sampling(top_p=0.4)).softmax(-1).tolist() == [[1.0, 0.0, 0.0, 0.0]]
    # top 3, then nucleus .8 of what is left ([.526, .316, .158]): .526 does not reach .8, .842 does
    both = shape_logits(logits, Sampling(top_k=3, top_p=0.8)).softmax(-1)
    torch.testing.assert_close(both, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))


def test_inverse_cdf_by_hand():
    probabilities = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).expand(6, -1)
    uniform = torch.tensor([0.0, 0.19, 0.2, 0.69, 0.71, 1 - 2**-24])
    assert draw_by_inverse_cdf(probabilities, uniform).tolist() == [0, 0, 2, 2, 3, 3]


def test_inverse_cdf_never_draws_a_token_without_probability_at_the_end():
    probabilities = torch.tensor(
        [[0.0, 0.7, 0.2999, 0.0, 0.0]]
    )  # sums to less than 1, as float sums do
    assert draw_by_inverse_cdf(probabilities, torch.tensor([1 - 2**-24])).item() == 2
    assert draw_by_inverse_cdf(probabilities, torch.tensor([0.0])).item() == 1


def test_draws_follow_the_distribution():
    torch.manual_seed(0)
    probabilities = torch.tensor([0.05, 0.6, 0.0, 0.35])
    drawn = draw_by_inverse_cdf(probabilities.expand(40_000, -1), torch.rand(40_000))
    frequency = drawn.bincount(minlength=4) / 40_000
    # five standard deviations of a frequency: 5 sqrt(.25 / 40000) = .0125
    assert (frequency - probabilities).abs().max() < 0.0125
    assert frequency[2] == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10), st.floats(0.05, 1.0), st.integers(0, 99))
def test_the_support_is_packed_and_unpacked(vocab_size, top_k, top_p, seed):
    logits = torch.randn(3, 2, vocab_size, generator=torch.Generator().manual_seed(seed))
    shaped = shape_logits(logits, Sampling(top_k=top_k, top_p=top_p))
    kept = unpack_support(pack_support(shaped), vocab_size)
    assert torch.equal(kept, shaped > -math.inf)
    assert kept.any(-1).all()
    assert pack_support(shaped).shape == (3, 2, -(-vocab_size // 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"temperature": 0.0},
            "temperature .0.0. must be positive; for the likeliest token choose greedy",
        ),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k .-1. must be 0"),
        ({"top_p": 0.0}, "top_p .0.0. must lie in"),
        ({"top_p": 1.1}, "top_p .1.1. must lie in"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)
