"""A rare jump neither blows up a loss nor vanishes; what is not finite, or no float32, is refused
or right."""

import numpy as np
import pytest
import torch

from vla.actions.action_statistics import MAX_NORMALIZED, describe_rare_jumps
from vla.actions.bins import ActionBins, fit_bins
from vla.actions.fast import FastCode, fit_fast
from vla.actions.normalize import ActionNormalizer, fit_normalizer
from vla.build import policy_settings
from vla.config import load

NAMES = ("dx", "dy", "dyaw")
JUMPS = [(2e-6, 0.2), (2e-5, 0.2), (2e-4, -0.2), (2e-3, 0.2), (0.01, 1.0)]


def trembling(tremble, jump, length=1):
    """The last dimension trembles, and jumps in 4 of 1000 frames (or stretches of `length`)."""
    random = np.random.default_rng(0)
    actions = random.uniform(-0.03, 0.03, (1000, 3)).astype(np.float32)
    actions[:, 2] = random.normal(0, tremble, 1000)
    for first in range(0, 1000, 250):
        actions[first : first + length, 2] = jump
    return actions


def chunks_of(actions, chunk=4):
    return actions[
        np.minimum(np.arange(len(actions))[:, None] + np.arange(chunk), len(actions) - 1)
    ]


@pytest.mark.parametrize(("tremble", "jump"), JUMPS)
def test_a_rare_jump_stays_within_reach_of_the_normaliser(tremble, jump):
    actions = trembling(tremble, jump)
    code = fit_normalizer(actions)
    values = code.encode(torch.from_numpy(actions))
    assert values.abs().max() <= MAX_NORMALIZED + 1e-3
    assert values[0, 2].abs() >= 0.99  # and is no small movement either
    np.testing.assert_allclose(code.decode(values), actions, atol=1e-6)


def test_ordinary_actions_keep_their_quantiles():
    actions = np.random.default_rng(1).standard_t(4, (2000, 2)).astype(np.float32)
    low, high = np.quantile(actions.astype(np.float64), [0.01, 0.99], axis=0)
    code = fit_normalizer(actions)
    assert code.encode(torch.from_numpy(actions)).abs().max() > 2
    assert (code.low, code.high) == (tuple(low), tuple(high))
    assert describe_rare_jumps(actions, ("a", "b"), MAX_NORMALIZED) == []


@pytest.mark.parametrize("binning", ["quantile", "uniform"])
@pytest.mark.parametrize(("tremble", "jump"), JUMPS)
def test_bins_bring_a_rare_jump_back_as_near_as_it_was(tremble, jump, binning):
    actions = trembling(tremble, jump)
    bins = fit_bins(actions, 64, binning)
    back = bins.decode(bins.encode(torch.from_numpy(actions)))
    assert back[0, 2] == pytest.approx(jump, rel=1e-3)
    assert bins.num_bins <= 64
    # What trembles is told apart as before: the error of a bin, not of the jump.
    assert (back[1:, 2] - torch.from_numpy(actions[1:, 2])).abs().median() < tremble


def test_jumps_of_many_sizes_share_the_bins_of_their_side():
    actions = trembling(2e-4, 0.1)
    at = np.arange(0, 1000, 125)
    actions[at, 2] = np.linspace(0.1, 0.24, 8)
    actions[at + 1, 2] = -np.linspace(0.1, 0.24, 8)
    bins = fit_bins(actions, 64, "quantile")
    back = bins.decode(bins.encode(torch.from_numpy(actions))).numpy()
    np.testing.assert_allclose(back[at, 2], actions[at, 2], atol=1e-6)
    np.testing.assert_allclose(back[at + 1, 2], actions[at + 1, 2], atol=1e-6)


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("chunk", [4, 8])
def test_compressed_tokens_hold_a_rare_jump(length, chunk):
    chunks = chunks_of(trembling(2e-5, 0.2, length), chunk)
    code = fit_fast(chunks, 256, 10.0)
    back = code.decode(*code.encode(torch.from_numpy(chunks[:1])))
    # Rounding to 1 / (2 scale) on the normalised scale, of which a jump is at least a seventh part.
    assert back[0, 0, 2] == pytest.approx(0.2, abs=0.2 * 0.15)


def test_what_does_not_fit_the_tokens_is_named_by_its_dimension():
    with pytest.raises(
        ValueError,
        match=r"at a scale of 500.0, most of them in dimension \d: lower policy.scale",
    ):
        fit_fast(chunks_of(trembling(2e-3, 0.2)), 256, 500.0)


FITS = {
    "normalizer": fit_normalizer,
    "bins": lambda actions: fit_bins(actions, 16, "quantile"),
    "fast": lambda actions: fit_fast(actions.reshape(-1, 4, 3), 256, 10.0),
}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_what_is_not_finite_is_refused(fit, value):
    actions = trembling(2e-3, 0.2)
    actions[7, 1] = value
    with pytest.raises(
        ValueError, match="1 numbers that are NaN or infinite, the first in row 7, dimension 1"
    ):
        fit(actions)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_numbers_of_every_kind_are_encoded_right(dtype):
    code = ActionNormalizer((0, 1), (0.0, 0.0), (-2.5, 0.0), (2.5, 10.0))
    actions = torch.tensor([[1.0, 3.0], [-2.0, 8.0]])
    torch.testing.assert_close(
        code.encode(actions.to(dtype)), torch.tensor([[0.4, -0.4], [-0.8, 0.6]])
    )
    whole = np.arange(-20, 20).reshape(-1, 1)
    bins = fit_bins(whole, 8, "quantile")
    expected = bins.encode(torch.from_numpy(whole).float())
    assert torch.equal(bins.encode(torch.from_numpy(whole).to(dtype)), expected)
    assert fit_normalizer(whole) == fit_normalizer(whole.astype(np.float64))


def test_a_rare_jump_is_said_with_what_becomes_of_it():
    actions = trembling(2e-5, 0.2)
    chunks = chunks_of(actions)
    told = {
        name: (kind := policy_settings(load([f"policy={name}"]).policy)).code_notes(
            kind.fit_code(chunks), actions, NAMES
        )
        for name in ("token", "regression", "flow", "diffusion", "fast")
    }
    assert all(
        notes[0].startswith("dyaw spans -4.19e-05 to 5.17e-05 in 98 % of the frames")
        for notes in told.values()
    )
    assert "bins of their own" in told["token"][0]
    assert "its scale is widened 427 times" in told["regression"][0]
    assert told["flow"] == told["regression"]
    assert "its scale is widened 890 times" in told["fast"][0]
    diffusion = told["diffusion"]
    assert (
        "policy.clip (2) cuts the actions of 0.4 % of the frames, which lie up to 10 out"
        in diffusion[1]
    )


def test_a_code_of_widened_actions_survives_its_file():
    code = fit_fast(chunks_of(trembling(2e-5, 0.2)), 256, 10.0)
    assert FastCode.from_dict(code.to_dict()) == code


@pytest.mark.parametrize(
    "change",
    [
        {"active": []},
        {"active": [9]},
        {"active": [-1]},
        {"constants": []},
        {"constants": "x"},
        {"edges": []},
        {"edges": 5},
        {"centers": [[1.0]]},
    ],
)
def test_bins_that_cannot_be_are_refused(change):
    bins = fit_bins(trembling(0.01, 1.0), 8, "quantile").to_dict()
    with pytest.raises((ValueError, TypeError)):
        ActionBins.from_dict({**bins, **change})


@pytest.mark.parametrize(
    "change", [{"active": [3]}, {"low": [0.0]}, {"high": [[1.0]] * 3}, {"constants": []}]
)
def test_a_normalizer_that_cannot_be_is_refused(change):
    values = fit_normalizer(trembling(0.01, 1.0)).to_dict()
    with pytest.raises((ValueError, TypeError)):
        ActionNormalizer.from_dict({**values, **change})
