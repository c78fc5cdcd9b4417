"""Credit among trajectories of one start: every peer's numbers for [1, 0, 0, 0] are in the notes;
these are ours."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.rl.group_advantages import group_relative, leave_one_out, maximum_likelihood

ESTIMATORS = {
    "std": lambda returns, group: group_relative(returns, group, "std"),
    "none": lambda returns, group: group_relative(returns, group, "none"),
    "leave_one_out": leave_one_out,
    "maximum_likelihood": maximum_likelihood,
}
nan = float("nan")


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("std", [1.5, -0.5, -0.5, -0.5]),  # std = sqrt((.5625 + 3*.0625) / 3) = .5, (1 - .25) / .5
        ("none", [0.75, -0.25, -0.25, -0.25]),
        ("leave_one_out", [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ("maximum_likelihood", [3.0, -1.0, -1.0, -1.0]),
    ],
)
def test_one_success_in_four(estimator, expected):
    credit = ESTIMATORS[estimator](torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4).long())
    torch.testing.assert_close(credit.advantages, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert credit.keep.all()


def test_groups_of_unequal_size_interleaved():
    # group 7: returns 2, 0 -> mean 1, std sqrt(2) = 1.4142136, A = +-.7071068. group 3: returns 1,
    # 2, 6 -> mean 3, std sqrt(7) = 2.6457513, A = -.7559289, -.3779645, 1.1338934.
    credit = group_relative(
        torch.tensor([2.0, 1.0, 0.0, 2.0, 6.0]), torch.tensor([7, 3, 7, 3, 3]), "std"
    )
    expected = torch.tensor([0.7071068, -0.7559289, -0.7071068, -0.3779645, 1.1338934])
    torch.testing.assert_close(credit.advantages, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_singletons_equal_returns_and_unscorable_leave(estimator):
    returns = torch.tensor([1.0, 0.3, 0.3, nan, 2.0, 1.0, nan, 5.0])
    group = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3])
    credit = ESTIMATORS[estimator](returns, group)
    assert credit.keep.tolist() == [False, False, False, False, True, True, False, False]
    assert credit.advantages[~credit.keep].tolist() == [0.0] * 6
    assert credit.advantages[4] > 0 > credit.advantages[5]
    assert credit.metrics == {
        "num_groups": 4.0,
        "groups_singleton": 2.0,  # groups 0 and 3 are left with one scorable return
        "groups_without_variance": 1.0,
        "trajectories_unscorable": 2.0,
    }


def test_maxrl_refuses_negative_returns():
    with pytest.raises(ValueError, match="-0.5.*maxrl"):
        maximum_likelihood(torch.tensor([1.0, -0.5]), torch.zeros(2).long())


def naive(estimator, returns):
    """One group, one trajectory at a time."""
    n, mean = len(returns), sum(returns) / len(returns)
    result = []
    for i in range(n):
        others = [returns[j] for j in range(n) if j != i]
        if estimator == "leave_one_out":
            result.append(returns[i] - sum(others) / (n - 1))
        elif estimator == "maximum_likelihood":
            result.append((returns[i] - mean) / mean)
        else:
            std = (sum((r - mean) ** 2 for r in returns) / (n - 1)) ** 0.5
            result.append(
                (returns[i] - mean) / (std + 1e-6) if estimator == "std" else returns[i] - mean
            )
    return torch.tensor(result)


returns_of_a_group = st.lists(st.integers(0, 8).map(lambda x: x / 8), min_size=2, max_size=6)


@settings(max_examples=25, deadline=None)
@given(returns_of_a_group, st.randoms(use_true_random=False), st.sampled_from(sorted(ESTIMATORS)))
def test_permuting_a_group_permutes_its_advantages(returns, random, estimator):
    order = list(range(len(returns)))
    random.shuffle(order)
    value, group = torch.tensor(returns), torch.zeros(len(returns)).long()
    straight = ESTIMATORS[estimator](value, group)
    permuted = ESTIMATORS[estimator](value[order], group)
    torch.testing.assert_close(permuted.advantages, straight.advantages[order])
    if len(set(returns)) > 1:
        torch.testing.assert_close(
            straight.advantages, naive(estimator, returns), rtol=1e-4, atol=1e-5
        )


@settings(max_examples=25, deadline=None)
@given(returns_of_a_group, st.integers(-4, 4), st.sampled_from(["std", "none", "leave_one_out"]))
def test_a_constant_added_to_rewards_changes_nothing(returns, constant, estimator):
    value, group = torch.tensor(returns), torch.zeros(len(returns)).long()
    before = ESTIMATORS[estimator](value, group).advantages
    torch.testing.assert_close(ESTIMATORS[estimator](value + constant, group).advantages, before)
