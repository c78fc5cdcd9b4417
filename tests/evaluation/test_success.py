"""Intervals, paired tests and manifests, by numbers worked out by hand."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.evaluation.starts import SeedRange, StartManifest
from vla.statistics import SuccessRate, bootstrap_interval, mcnemar_exact, wilson_interval


def test_wilson_interval_of_eight_in_ten():
    # z^2 = 3.841459, n = 10, p = .8: centre (.8 + .192073) / 1.384146 = .716739
    # half width 1.959964 sqrt(.016 + .009604) / 1.384146 = 1.959964 * .160011 / 1.384146 = .226577
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=2e-6)


def test_wilson_interval_at_the_ends():
    # p = 0: low 0, high (z^2/n) / (1 + z^2/n) = .3841459 / 1.3841459 = .277533
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_rate_and_mirrors(pair: tuple[int, int]):
    successes, n = pair
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts_are_refused(successes: int, n: int):
    with pytest.raises(
        ValueError, match=rf"successes \({successes}\) must lie in 0 to num_starts \({n}\)"
    ):
        wilson_interval(successes, n)


def test_a_rate_tells_all_that_makes_it_a_number():
    rate = SuccessRate.from_outcomes([True] * 8 + [False] * 2, temperature=None)
    assert str(rate) == "80.0 % (8/10, 95 % Wilson interval 49.0 to 94.3, greedy)"
    assert SuccessRate(8, 10, 0.7).decoding == "sampled at temperature 0.7"


def test_mcnemar_by_hand():
    # 1 lost, 8 gained: 2 (C(9,0) + C(9,1)) / 2^9 = 20 / 512
    assert mcnemar_exact(1, 8) == mcnemar_exact(8, 1) == 0.0390625
    # 2 and 2: twice the tail is 2 (1 + 4 + 6) / 16 > 1
    assert mcnemar_exact(2, 2) == 1.0
    assert mcnemar_exact(0, 0) == 1.0
    # 0 and 5: 2 / 32
    assert mcnemar_exact(0, 5) == 0.0625
    # scipy agrees where the counts are large
    from scipy.stats import binomtest

    assert mcnemar_exact(17, 240) == pytest.approx(binomtest(17, 257).pvalue, rel=1e-9)


def test_bootstrap_interval_is_near_the_normal_one_for_many_starts():
    # b = 50, c = 150 of 1000: d = .1, variance (.2 - .01) / 1000, 1.96 standard errors = .02702
    change = np.repeat([-1.0, 1.0, 0.0], [50, 150, 800])
    for levels in ((-1, 0, 1), None):
        low, high = bootstrap_interval(change, levels=levels)
        assert low == pytest.approx(0.1 - 0.02702, abs=0.002)
        assert high == pytest.approx(0.1 + 0.02702, abs=0.002)
    assert bootstrap_interval(np.zeros(10), levels=(-1, 0, 1)) == (0.0, 0.0)


def test_bootstrap_intervals_are_those_of_earlier_versions():
    """The same seed draws the same resamples as when they were written."""
    shares = np.array([1, 4, 5]) / 10
    counts = np.random.default_rng(0).multinomial(10, shares, size=10_000)
    expected = np.quantile((counts[:, 2] - counts[:, 0]) / 10, [0.025, 0.975])
    change = np.repeat([-1.0, 0.0, 1.0], [1, 4, 5])
    assert bootstrap_interval(change, levels=(-1, 0, 1)) == tuple(expected)
    values = np.array([0.1, 0.5, 0.9])
    rows = np.random.default_rng(0).integers(3, size=(4000, 3))
    assert bootstrap_interval(values) == tuple(np.quantile(values[rows].mean(1), [0.025, 0.975]))


def manifest(**changes) -> StartManifest:
    ranges = {
        "train": SeedRange(0, 99),
        "validation": SeedRange(100, 199),
        "evaluation": SeedRange(200, 299),
    }
    return StartManifest(**{"scene": {"task": "reach"}, **ranges, "num_starts": 50, **changes})


def test_the_hash_is_that_of_the_scene_and_the_seeds():
    text = '{"scene": {"task": "reach"}, "seeds": [200, 50]}'
    assert manifest().sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert manifest(train=SeedRange(0, 50)).sha256 == manifest().sha256
    assert manifest(num_starts=49).sha256 != manifest().sha256
    assert manifest(scene={"task": "push"}).sha256 != manifest().sha256
    assert manifest().evaluation_seeds.tolist() == list(range(200, 250))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": SeedRange(0, 200)},
            r"the validation seeds \(100 to 199\) overlap the train seeds \(0 to 200\)",
        ),
        (
            {"train": SeedRange(299, 400)},
            r"the evaluation seeds \(200 to 299\) overlap the train seeds \(299 to 400\)",
        ),
        (
            {"evaluation": SeedRange(150, 299)},
            r"the evaluation seeds \(150 to 299\) overlap the validation seeds",
        ),
        ({"num_starts": 101}, r"101 starts need as many seeds, and 200 to 299 are 100"),
    ],
)
def test_starts_that_were_seen_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        manifest(**changes)


def test_a_manifest_reads_back_and_an_edited_one_is_refused(tmp_path: Path):
    path = tmp_path / "starts.json"
    manifest().save(path)
    assert StartManifest.load(path) == manifest()
    path.write_text(json.dumps({**json.loads(path.read_text()), "evaluation": [210, 299]}))
    with pytest.raises(ValueError, match="was changed: its hash does not match its starts"):
        StartManifest.load(path)
