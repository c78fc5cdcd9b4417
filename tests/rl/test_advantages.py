"""Credit along time, by hand, against a naive double loop, and by its properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.rl.advantages import (
    bootstrap_values,
    generalized_advantages,
    place_rewards,
    rewards_to_go,
    whiten,
)

close = {"rtol": 1e-5, "atol": 1e-7}


def test_gae_along_decisions_with_termination_beside_truncation():
    # gamma .9, lambda .8, rows of two trajectories interleaved: 0, 1, 1, 0. 0 terminates: delta_1 =
    # 1 - .4 = .6, delta_0 = .9*.4 - .5 = -.14, A = [-.14 + .72*.6, .6] = [.292, .6]. 1 is
    # truncated, V(final) = .7: delta_1 = .9*.7 - .6 = .03, delta_0 = .2 + .9*.6 - .3 = .44, A =
    # [.4616, .03].
    advantages, returns = generalized_advantages(
        rewards=torch.tensor([0.0, 0.2, 0.0, 1.0]),
        values=torch.tensor([0.5, 0.3, 0.6, 0.4]),
        counted=torch.tensor([True, True, True, True]),
        trajectory=torch.tensor([0, 1, 1, 0]),
        bootstrap=bootstrap_values(torch.tensor([True, False]), torch.tensor([99.0, 0.7])),
        gamma=0.9,
        gae_lambda=0.8,
    )
    torch.testing.assert_close(advantages, torch.tensor([0.292, 0.4616, 0.03, 0.6]), **close)
    torch.testing.assert_close(returns, torch.tensor([0.792, 0.7616, 0.63, 1.0]), **close)


def test_gae_along_draws_skips_gaps():
    # gamma 1, lambda .95; draws 0, 2, 3 count; reward 1 at draw 3. delta = [.2 - .1, .3 - .2, 1 -
    # .3]; A_3 = .7, A_2 = .1 + .95*.7 = .765, A_0 = .1 + .95*.765 = .82675.
    mask = torch.tensor([[True, False, True, True, False]])
    advantages, returns = generalized_advantages(
        rewards=place_rewards(torch.tensor([1.0]), mask),
        values=torch.tensor([[0.1, 9.0, 0.2, 0.3, 9.0]]),
        counted=mask,
        trajectory=torch.tensor([0]),
        bootstrap=torch.tensor([0.0]),
        gamma=1.0,
        gae_lambda=0.95,
    )
    torch.testing.assert_close(advantages, torch.tensor([[0.82675, 0.0, 0.765, 0.7, 0.0]]), **close)
    torch.testing.assert_close(returns, torch.tensor([[0.92675, 0.0, 0.965, 1.0, 0.0]]), **close)


def test_gae_runs_on_through_turns_that_were_not_chosen():
    # Three rows of one conversation; the middle one is the user's and pays .5, which belongs to the
    # draw before it. gamma .5, lambda 1, V = 0: A of the last row's draw = 2; of the first row's
    # last draw .5 + .5*2 = 1.5; before .75.
    mask = torch.tensor([[True, True], [False, False], [True, False]])
    advantages, _ = generalized_advantages(
        rewards=place_rewards(torch.tensor([0.0, 0.5, 2.0]), mask),
        values=torch.zeros(3, 2),
        counted=mask,
        trajectory=torch.tensor([0, 0, 0]),
        bootstrap=torch.tensor([0.0]),
        gamma=0.5,
        gae_lambda=1.0,
    )
    torch.testing.assert_close(
        advantages, torch.tensor([[0.75, 1.5], [0.0, 0.0], [2.0, 0.0]]), **close
    )


def test_reward_before_the_first_choice_is_nobodys():
    to_go = rewards_to_go(
        torch.tensor([5.0, 1.0]),
        torch.tensor([False, True]),
        torch.tensor([0, 0]),
        num_trajectories=1,
        gamma=1.0,
    )
    assert to_go.tolist() == [0.0, 1.0]


def test_rewards_to_go_discount():
    # 1 + .5*2 + .25*4 = 3, 2 + .5*4 = 4, 4
    to_go = rewards_to_go(
        torch.tensor([1.0, 2.0, 4.0]),
        torch.ones(3, dtype=torch.bool),
        torch.zeros(3).long(),
        1,
        0.5,
    )
    assert to_go.tolist() == [3.0, 4.0, 4.0]


def test_truncation_without_a_final_value_is_refused():
    with pytest.raises(ValueError, match="final_values"):
        bootstrap_values(torch.tensor([True, False]), None)


def naive_gae(rewards, values, counted, trajectory, bootstrap, gamma, gae_lambda):
    """Sum over k of (gamma lambda)^k delta_{t+k}, one position at a time, in Python floats."""
    flat = [
        (int(trajectory[r]), r, d)
        for r in range(len(values))
        for d in range(values.shape[1])
        if bool(counted[r, d])
    ]
    result = torch.zeros_like(values)
    for name in range(len(bootstrap)):
        own = [(r, d) for t, r, d in flat if t == name]
        reward = [float(rewards[r, d]) for r, d in own]
        value = [float(values[r, d]) for r, d in own] + [float(bootstrap[name])]
        for start, (r, d) in enumerate(own):
            total = 0.0
            for k in range(start, len(own)):
                delta = reward[k] + gamma * value[k + 1] - value[k]
                total += (gamma * gae_lambda) ** (k - start) * delta
            result[r, d] = total
    return result


rollouts = st.integers(0, 10_000).map(
    lambda seed: random_positions(torch.Generator().manual_seed(seed))
)


def random_positions(generator):
    num_rows, num_draws, num_trajectories = (
        int(torch.randint(1, 7, (), generator=generator)) for _ in range(3)
    )
    counted = torch.rand(num_rows, num_draws, generator=generator) > 0.4
    return {
        "rewards": torch.where(counted, torch.randn(num_rows, num_draws, generator=generator), 0.0),
        "values": torch.randn(num_rows, num_draws, generator=generator),
        "counted": counted,
        "trajectory": torch.randint(0, num_trajectories, (num_rows,), generator=generator),
        "bootstrap": torch.randn(num_trajectories, generator=generator),
    }


@settings(max_examples=30, deadline=None)
@given(rollouts, st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_naive_double_loop(positions, gamma, gae_lambda):
    ours, returns = generalized_advantages(**positions, gamma=gamma, gae_lambda=gae_lambda)
    torch.testing.assert_close(
        ours, naive_gae(**positions, gamma=gamma, gae_lambda=gae_lambda), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        returns, torch.where(positions["counted"], ours + positions["values"], 0.0)
    )


@settings(max_examples=30, deadline=None)
@given(rollouts, st.integers(0, 6))
def test_inserting_rows_that_were_not_chosen_changes_nothing(positions, place):
    place = min(place, len(positions["values"]))
    owner = positions["trajectory"][min(place, len(positions["trajectory"]) - 1)]

    def insert(tensor, row):
        return torch.cat([tensor[:place], row, tensor[place:]])

    num_draws = positions["values"].shape[1]
    longer = {
        "rewards": insert(positions["rewards"], torch.zeros(1, num_draws)),
        "values": insert(positions["values"], torch.full((1, num_draws), 123.0)),
        "counted": insert(positions["counted"], torch.zeros(1, num_draws, dtype=torch.bool)),
        "trajectory": insert(positions["trajectory"], owner.reshape(1)),
        "bootstrap": positions["bootstrap"],
    }
    before, _ = generalized_advantages(**positions, gamma=0.9, gae_lambda=0.8)
    after, _ = generalized_advantages(**longer, gamma=0.9, gae_lambda=0.8)
    assert torch.equal(torch.cat([after[:place], after[place + 1 :]]), before)
    assert not after[place].any()


def test_whitening_by_hand_uses_the_unbiased_variance_of_counted_positions():
    # counted 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7, std 2.6457513
    values, counted = torch.tensor([1.0, 100.0, 2.0, 6.0]), torch.tensor([True, False, True, True])
    expected = torch.tensor([-0.7559289, 0.0, -0.3779645, 1.1338934])
    torch.testing.assert_close(whiten(values, counted), expected, **close)
    # The mean stays: 3 + each.
    expected = torch.tensor([2.2440711, 0.0, 2.6220355, 4.1338934])
    torch.testing.assert_close(whiten(values, counted, shift_mean=False), expected, **close)


def test_whitening_one_position_only_centres_it():
    assert whiten(torch.tensor([5.0, 1.0]), torch.tensor([True, False])).tolist() == [0.0, 0.0]
