"""Continuous actions on one scale, and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.actions.normalize import ActionNormalizer, fit_normalizer


def frames() -> np.ndarray:
    """A slow dimension, one that stands still, one that moves in a single frame, and a gripper."""
    actions = np.zeros((1001, 4), dtype=np.float32)
    actions[:, 0] = np.linspace(-0.05, 0.05, 1001)
    actions[:, 1] = 0.3
    actions[7, 2] = 0.02
    actions[:, 3] = np.where(np.arange(1001) < 400, -1.0, 1.0)
    return actions


def test_quantiles_become_the_ends_of_the_scale():
    normalizer = fit_normalizer(frames())
    assert normalizer.active == (0, 2, 3)
    # 1001 evenly spaced values from -.05 to .05: the 1 % quantile is the eleventh, -.049; the 99 %
    # one .049.
    assert normalizer.low == pytest.approx((-0.049, 0.0, -1.0))
    assert normalizer.high == pytest.approx((0.049, 0.02, 1.0))
    values = normalizer.encode(
        torch.tensor([[-0.049, 0.3, 0.0, -1.0], [0.0, 0.3, 0.02, 1.0], [0.098, 0.3, 0.01, 0.0]])
    )
    expected = torch.tensor([[-1.0, -1.0, -1.0], [0.0, 1.0, 1.0], [2.0, 0.0, 0.0]])
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


def test_what_stands_still_is_executed_as_it_is():
    normalizer = fit_normalizer(frames())
    actions = normalizer.decode(torch.zeros(2, 5, 3))
    assert actions.shape == (2, 5, 4)
    torch.testing.assert_close(
        actions[0, 0], torch.tensor([0.0, 0.3, 0.01, 0.0]), rtol=0, atol=1e-6
    )
    assert ActionNormalizer.from_dict(normalizer.to_dict()) == normalizer


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3))
def test_a_round_trip_changes_nothing_inside_or_outside_the_quantiles(values):
    normalizer = fit_normalizer(frames())
    encoded = torch.tensor([values])
    torch.testing.assert_close(
        normalizer.encode(normalizer.decode(encoded)), encoded, rtol=1e-3, atol=1e-3
    )


def test_nothing_to_learn_is_said():
    with pytest.raises(ValueError, match="every action dimension is constant"):
        fit_normalizer(np.ones((10, 3), dtype=np.float32))
