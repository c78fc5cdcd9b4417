"""Merging, dropping and refilling groups."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rl.toys import SETTINGS, make_rollout
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.dynamic_sampling import (
    collect_informative,
    informative_groups,
    keep_trajectories,
    merge_rollouts,
)
from vla.types import ActionScores

nan = float("nan")


def rollout_of(*groups, seed=0):
    """A rollout whose groups have these returns, one row a trajectory; success where the return is
    1."""
    returns = [r for group in groups for r in group]
    number = [i for i, group in enumerate(groups) for _ in group]
    made = make_rollout(returns, list(range(len(returns))), number, seed=seed)
    success = (torch.tensor(returns) == 1).float()
    return dataclasses.replace(
        made, success=success, metrics={"control_steps": float(len(returns))}
    )


def test_groups_that_say_nothing_are_dropped():
    rollout = rollout_of([1.0, 0.0], [0.5, 0.5], [1.0], [nan, 1.0], [0.0, 0.25])
    kept = keep_trajectories(rollout, informative_groups(rollout))
    assert kept.group.tolist() == [0, 0, 4, 4]
    assert kept.rewards.tolist() == [1.0, 0.0, 0.0, 0.25]
    assert kept.trajectory.tolist() == [0, 1, 2, 3]
    assert torch.equal(kept.observation.proprio, rollout.observation.proprio[[0, 1, 7, 8]])


def test_success_bounds():
    rollout = rollout_of([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0])
    keep = informative_groups(rollout, min_success=0.3, max_success=0.7)
    assert keep.tolist() == [False] * 8 + [True] * 4
    assert informative_groups(rollout, min_success=0.25, max_success=0.75).all()
    with pytest.raises(ValueError, match="min_success"):
        informative_groups(dataclasses.replace(rollout, success=None), min_success=0.1)


def test_merging_numbers_trajectories_and_groups_on():
    merged = merge_rollouts([rollout_of([1.0, 0.0], [0.0, 1.0]), rollout_of([0.5, 0.25], seed=1)])
    assert merged.trajectory.tolist() == list(range(6))
    assert merged.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert merged.metrics == {"control_steps": 6.0}
    assert merged.success.tolist() == [1, 0, 0, 1, 0, 0]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=9, max_size=9).filter(any))
def test_keeping_and_merging_lose_nothing(kept):
    """What is kept and what is left, merged, is the rollout in another order."""
    rollout = make_rollout(
        [float(i) for i in range(12)],
        [0, 1, 2, 2, 3, 4, 5, 5, 5, 6, 7, 8],
        [0, 0, 0, 1, 1, 1, 2, 2, 2],
    )
    keep = torch.tensor(kept)
    parts = [keep_trajectories(rollout, part) for part in (keep, ~keep) if part.any()]
    merged = merge_rollouts(parts)
    order = torch.cat([keep.nonzero(), (~keep).nonzero()]).squeeze(1)
    assert torch.equal(merged.returns, rollout.returns[order])
    assert merged.rewards.sort().values.tolist() == rollout.rewards.tolist()


def sampler(*batches):
    """Hands out these rollouts in turn, and notes how many groups it was asked for."""
    asked, waiting = [], list(batches)

    def sample(num_groups):
        asked.append(num_groups)
        return waiting.pop(0)

    return sample, asked


def test_refills_ask_for_what_is_missing_and_stop_when_full():
    sample, asked = sampler(
        rollout_of([1.0, 0.0], [1.0, 1.0], [0.0, 0.0]), rollout_of([0.0, 1.0], [0.0, 1.0])
    )
    rollout = collect_informative(sample, num_groups=3, max_resamples=5)
    assert asked == [3, 2]
    assert rollout.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert rollout.metrics["groups_sampled"] == 5
    assert rollout.metrics["groups_kept"] == 3
    assert rollout.metrics["refills"] == 1
    assert rollout.metrics["control_steps"] == 10


def test_refills_are_bounded_and_surplus_is_dropped():
    dull = rollout_of([0.0, 0.0])
    sample, asked = sampler(dull, dull, dull)
    rollout = collect_informative(sample, num_groups=2, max_resamples=2)
    assert asked == [2, 2, 2]
    assert rollout.num_trajectories == 2  # the last one as it came: its metrics are not lost
    assert rollout.metrics["groups_kept"] == 0
    sample, _ = sampler(rollout_of([0.0, 1.0], [0.0, 1.0], [0.0, 1.0]))
    assert collect_informative(sample, num_groups=2, max_resamples=0).group.tolist() == [0, 0, 1, 1]


def test_dropping_groups_and_giving_them_no_weight_are_the_same_loss():
    rollout = rollout_of([1.0, 0.0], [0.5, 0.5], [0.0, 1.0])
    algorithm = make_algorithm("dapo", **SETTINGS["dapo"])
    dropped = keep_trajectories(rollout, informative_groups(rollout))
    losses = [
        algorithm.loss(algorithm.prepare(r), ActionScores(r.logprobs + 0.1)).loss.item()
        for r in (rollout, dropped)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_asking_for_nothing_is_refused():
    with pytest.raises(ValueError, match="num_groups.*0"):
        collect_informative(sampler()[0], num_groups=0, max_resamples=1)
