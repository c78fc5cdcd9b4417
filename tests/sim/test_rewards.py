"""Golden values of the reward terms, worked out by hand."""

import numpy as np
import pytest

from sim import rewards


def test_tolerance():
    # Within 0.01: 1. At the margin, 0.15 beyond it: 0.1. Halfway: 0.1 ** (1/4) = 0.562341
    # (quadratic exponent).
    got = rewards.tolerance(np.array([0.0, 0.01, -0.01, 0.16, 0.085]), upper=0.01, margin=0.15)
    np.testing.assert_allclose(got, [1, 1, 1, 0.1, 0.5623413], rtol=1e-6)


def test_reach_is_the_tolerance_of_the_distance():
    # |(0.096, 0.128, 0)| = 0.16, the margin's end; |(0.006, 0, 0.008)| = 0.01, inside.
    got = rewards.reach(np.array([[0.096, 0.128, 0.0], [0.006, 0.0, 0.008]]))
    np.testing.assert_allclose(got, [0.1, 1.0], rtol=1e-6)


def test_lift_counts_only_a_held_block():
    got = rewards.lift(np.array([True, True, True, False]), np.array([0.0, 0.02, 0.3, 0.3]))
    np.testing.assert_allclose(got, [0.0, 0.4, 1.0, 0.0])


def test_place_counts_only_after_a_lift():
    offset = np.array([[0.0, 0.16], [0.0, 0.16], [0.0, 0.0]])
    np.testing.assert_allclose(
        rewards.place(np.array([True, False, True]), offset), [0.1, 0.0, 1.0], rtol=1e-6
    )


@pytest.mark.parametrize("term", [rewards.grasp, rewards.success])
def test_facts_become_numbers(term):
    assert term(np.array([True, False])).tolist() == [1.0, 0.0]
