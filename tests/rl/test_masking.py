"""Which outputs a loss counts: groups of one return, completions that were cut, and estimates of
the KL that are capped. Worked by hand, two draws a row at most.
"""

import dataclasses

import pytest
import torch

from tests.rl.toys import make_rollout
from vla.config import load
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.batch import reduction_weights
from vla.rl.dynamic_sampling import mask_trajectories
from vla.types import ActionScores

SETTINGS = {"clip_low": 0.2, "clip_high": 0.2, "kl_coefficient": 1.0}


def two_groups(logprob_of_the_equal=-1.0):
    """Two groups of two answers of one draw; returns 1, 0 and .5, .5. The reference finds every
    draw at -1."""
    made = make_rollout([1.0, 0.0, 0.5, 0.5], [0, 1, 2, 3], [0, 0, 1, 1])
    mask = torch.zeros_like(made.mask)
    mask[:, 0] = True
    logprobs = torch.full(mask.shape, -1.0)
    logprobs[2:] = logprob_of_the_equal
    return dataclasses.replace(made, mask=mask, logprobs=logprobs), torch.full(mask.shape, -1.0)


def gradient(algorithm, rollout, reference):
    """Of the loss by the log-probability of each answer."""
    batch = algorithm.prepare(rollout, reference)
    logprobs = rollout.logprobs.clone().requires_grad_()
    algorithm.loss(batch, ActionScores(logprobs, None, None)).loss.backward()
    return logprobs.grad[:, 0]


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_groups_of_one_return_count_where_they_are_asked_to(name):
    """Advantages +-.7071 and 0. A k2 penalty pulls by d = log pi - log ref, here 0 and .5. Two
    answers count, or four: -.7071 / 2 against -.7071 / 4, and .5 / 4 for each answer of the second
    group.
    """
    rollout, reference = two_groups(logprob_of_the_equal=-0.5)
    settings = {**SETTINGS, "kl_estimator": "k2"}
    left_out = gradient(make_algorithm(name, **settings), rollout, reference)
    torch.testing.assert_close(
        left_out, torch.tensor([-0.35355, 0.35355, 0.0, 0.0]), rtol=1e-4, atol=1e-5
    )
    kept = gradient(make_algorithm(name, **settings, keep_equal_groups=True), rollout, reference)
    torch.testing.assert_close(
        kept, torch.tensor([-0.17678, 0.17678, 0.125, 0.125]), rtol=1e-4, atol=1e-5
    )


def test_what_cannot_be_scored_counts_nowhere_all_the_same():
    rollout, reference = two_groups()
    rollout = dataclasses.replace(rollout, rewards=torch.tensor([1.0, 0.0, 0.5, float("nan")]))
    batch = make_algorithm("grpo", **SETTINGS, keep_equal_groups=True).prepare(rollout, reference)
    torch.testing.assert_close(batch.weights[:, 0], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0]))


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_an_outlier_of_the_kl_is_capped(name):
    """log pi - log ref = -15: k3 is e^15 - 1 - 15 = 3269001.4 nats, its gradient 1 - e^15; capped
    at 10 it has none."""
    rollout, _ = two_groups()
    reference = torch.full(rollout.mask.shape, -1.0)
    reference[0, 0] = 14.0
    settings = {**SETTINGS, "kl_estimator": "k3"}
    free = gradient(make_algorithm(name, **settings), rollout, reference)
    assert free[0] == pytest.approx(-0.35355 + (1 - 3269017.4) / 2, rel=1e-4)
    capped = gradient(make_algorithm(name, **settings, kl_cap=10.0), rollout, reference)
    torch.testing.assert_close(capped[:2], torch.tensor([-0.35355, 0.35355]), rtol=1e-4, atol=1e-5)
    batch = make_algorithm(name, **settings, kl_cap=10.0).prepare(rollout, reference)
    assert make_algorithm(name, **settings, kl_cap=10.0).loss(
        batch, ActionScores(rollout.logprobs, None, None)
    ).metrics["kl_reference"] == pytest.approx(10.0)


def test_cut_completions_leave_every_average_but_that_of_their_group():
    """Returns 1 and 0 of answers of two draws and one; the second was cut. Its return counts in the
    group's mean: the first has advantage .5. Its draw does not: each of the first's has weight 1/2
    (token), 1/(1 x 2) (sequence), 1/(1 x 4) (constant, of at most 4), where it would have 1/3, 1/(2
    x 2) and 1/(2 x 4).
    """
    made = make_rollout([1.0, 0.0], [0, 1], [0, 0])
    mask = torch.zeros_like(made.mask)
    mask[0, :2] = mask[1, 0] = True
    rollout = dataclasses.replace(made, mask=mask)
    filtered = mask_trajectories(rollout, torch.tensor([True, False]))
    for reduction, size, without, with_filter in (
        ("token", None, 1 / 3, 1 / 2),
        ("sequence", None, 1 / 4, 1 / 2),
        ("constant", 4, 1 / 8, 1 / 4),
    ):
        settings = {
            "clip_low": 0.2,
            "clip_high": 0.2,
            "scale": "none",
            "reduction": reduction,
            "max_length": size,
        }
        algorithm = make_algorithm("grpo", **settings)
        assert algorithm.prepare(rollout).weights[0, :2].tolist() == pytest.approx([without] * 2)
        batch = algorithm.prepare(filtered)
        assert batch.weights[0, :2].tolist() == pytest.approx([with_filter] * 2)
        assert batch.weights[1].tolist() == [0.0] * len(mask[1])
        assert batch.advantages[0].item() == 0.5
        assert batch.active_rows.tolist() == [0]
    nothing = mask_trajectories(rollout, torch.tensor([False, False]))
    assert not reduction_weights(
        nothing.mask, nothing.trajectory, torch.tensor([True, True]), "token"
    ).any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["algorithm.kl_cap=10"],
            r"algorithm.kl_cap \(10.0\) bounds the KL penalty, and algorithm.kl_coefficient is 0",
        ),
        (
            ["algorithm.keep_equal_groups=true", "rl.max_resamples=2"],
            r"rl.max_resamples \(2\) drops the groups that algorithm.keep_equal_groups \(true\) "
            r"keeps",
        ),
    ],
)
def test_settings_without_effect_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load(["mode=text", "preset=smoke", "algorithm=grpo", *overrides])
