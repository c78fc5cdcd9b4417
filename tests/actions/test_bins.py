"""Actions as tokens: edges and centres worked by hand, and what comes back from a round trip."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.actions.bins import ActionBins, fit_bins


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


def test_quantile_bins_by_hand():
    # Eight values, four bins of two: the quartiles (linear between order statistics, places 1.75,
    # 3.5, 5.25 of 0 to 7) are 1.75, 3.5 and 9.5 (5 + .25 * 18); the centres are the means of (0,
    # 1), (2, 3), (4, 5) and (23, 40).
    bins = fit_bins(column(0, 1, 2, 3, 4, 5, 23, 40), 4, "quantile")
    assert bins.edges == ((1.75, 3.5, 9.5),)
    assert bins.centers == ((0.5, 2.5, 4.5, 31.5),)
    assert bins.encode(torch.tensor([[-9.0], [1.0], [1.75], [9.4], [99.0]]))[:, 0].tolist() == [
        0,
        0,
        1,
        2,
        3,
    ]


def test_uniform_bins_by_hand():
    # 0 to 100 in steps of 1: the 1 % and 99 % quantiles are 1 and 99, edges cut [1, 99] into four
    # of 24.5.
    bins = fit_bins(column(*range(101)), 4, "uniform")
    assert bins.edges[0] == pytest.approx((25.5, 50.0, 74.5))
    # Means of 0..25, 26..49, 50..74 and 75..100: a value on an edge belongs above it.
    assert bins.centers[0] == pytest.approx((12.5, 37.5, 62.0, 87.5))


def test_an_empty_uniform_bin_gets_its_middle():
    values = np.concatenate([np.tile(np.arange(5), 20), np.tile(np.arange(45, 50), 20)])
    bins = fit_bins(column(*values), 5, "uniform")
    # [0, 49] cut in five of 9.8; between 9.8 and 39.2 lies nothing, so those centres are 14.7, 24.5
    # and 34.3.
    assert bins.edges[0] == pytest.approx((9.8, 19.6, 29.4, 39.2))
    assert bins.centers[0] == pytest.approx((2.0, 14.7, 24.5, 34.3, 47.0))


def test_a_gripper_gets_two_ids_and_what_stands_still_none():
    generator = np.random.default_rng(0)
    actions = np.zeros((200, 4), dtype=np.float32)
    actions[:, 0] = generator.normal(size=200)
    actions[:, 1] = 0.25 + generator.uniform(-4e-6, 4e-6, 200)  # spans less than 1e-5
    actions[:, 3] = np.where(generator.random(200) < 0.3, 1.0, -1.0)
    bins = fit_bins(actions, 16, "quantile")
    assert bins.active == (0, 3)
    assert (bins.num_active, bins.num_bins) == (2, 16)
    assert bins.edges[1] == (0.0,)
    assert bins.centers[1] == (-1.0, 1.0)
    assert bins.valid_ids().tolist() == [[True] * 16, [True] * 2 + [False] * 14]
    decoded = bins.decode(torch.tensor([[[3, 1], [3, 0]]]))
    assert decoded.shape == (1, 2, 4)
    assert decoded[0, :, 3].tolist() == [1.0, -1.0]
    # What gets no id is executed as its median, whatever the ids say.
    assert decoded[0, :, 1].tolist() == pytest.approx([0.25, 0.25], abs=4e-6)
    assert decoded[0, :, 2].tolist() == [0.0, 0.0]
    assert decoded[0, 0, 0].item() == pytest.approx(bins.centers[0][3])


def test_few_distinct_values_are_kept_exactly():
    bins = fit_bins(column(-0.2, 0.0, 0.0, 0.0, 0.1, 0.1), 8, "quantile")
    assert bins.centers[0] == pytest.approx((-0.2, 0.0, 0.1))
    assert bins.edges[0] == pytest.approx((-0.1, 0.05))


def test_it_reads_back_from_plain_values():
    bins = fit_bins(np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32), 8, "quantile")
    assert ActionBins.from_dict(json.loads(json.dumps(bins.to_dict()))) == bins


def test_what_cannot_be_binned_says_so():
    with pytest.raises(ValueError, match="every action dimension is constant"):
        fit_bins(np.ones((5, 2), dtype=np.float32), 8, "quantile")
    with pytest.raises(ValueError, match=r"policy.binning \(linear\) must be quantile or uniform"):
        fit_bins(column(*range(20)), 4, "linear")


def test_an_edge_that_rounding_lifts_off_a_value_keeps_the_value_on_its_side():
    # The quantile at .75 of these is .7500000000000001 in double precision, and .75 in the
    # policy's.
    data = column(0.0, 1.0, 0.5, 0.75, 0.625, 0.875, 0.96875, 0.984375, 0.25, 0.375, 0.3125)
    bins = fit_bins(data, 10, "quantile")
    ids = bins.encode(torch.from_numpy(data))
    assert torch.equal(bins.encode(bins.decode(ids)), ids)


VALUES = st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=60).filter(
    lambda v: max(v) - min(v) > 1e-3
)


@settings(max_examples=150, deadline=None)
@given(values=VALUES, num_bins=st.integers(2, 12), binning=st.sampled_from(["quantile", "uniform"]))
def test_a_round_trip_stays_in_its_bin(values, num_bins, binning):
    data = column(*values)
    bins = fit_bins(data, num_bins, binning)
    edges, centers = bins.edges[0], bins.centers[0]
    assert len(centers) == len(edges) + 1 <= num_bins
    assert list(edges) == sorted(edges)
    bounds = [float(data.min()), *edges, float(data.max())]
    ids = bins.encode(torch.from_numpy(data))
    back = bins.decode(ids)[:, 0].numpy()
    width = np.diff(bounds)[ids[:, 0].numpy()]
    # A centre lies in its bin, so no value moves further than the bin is wide.
    assert (np.abs(back - data[:, 0]) <= np.abs(width) + 1e-5).all()
    # Encoding what was decoded gives the same id: the policy can imitate itself.
    filled = np.unique(ids[:, 0].numpy())
    again = bins.encode(bins.decode(torch.from_numpy(filled)[:, None]))[:, 0].numpy()
    wider_than_rounding = np.diff(bounds)[filled] > 1e-4
    assert (again == filled)[wider_than_rounding].all()


@settings(max_examples=60, deadline=None)
@given(values=VALUES, num_bins=st.integers(2, 12))
def test_uniform_bins_are_at_most_half_a_bin_off_between_the_quantiles(values, num_bins):
    data = column(*values)
    low, high = np.quantile(data.astype(np.float64), [0.01, 0.99])
    if len(np.unique(data.round(6))) <= num_bins or high - low < 1e-3:
        return
    bins = fit_bins(data, num_bins, "uniform")
    middles = np.linspace(low, high, 2 * num_bins + 1)[1::2]
    ids = bins.encode(torch.from_numpy(middles.astype(np.float32))[:, None])
    assert ids[:, 0].tolist() == list(range(num_bins))
    assert (np.abs(np.diff(bins.edges[0]) - (high - low) / num_bins) < 1e-6).all()


def test_quantile_bins_hold_equal_shares():
    data = np.random.default_rng(2).gamma(0.5, size=(4000, 1)).astype(np.float32)
    bins = fit_bins(data, 16, "quantile")
    share = torch.bincount(bins.encode(torch.from_numpy(data))[:, 0], minlength=16) / 4000
    assert (share - 1 / 16).abs().max() < 1e-3
