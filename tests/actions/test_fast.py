"""FAST: what a chunk loses by compression is rounding alone, and every sequence of tokens that fits
is a chunk."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.actions.fast import (
    FastCode,
    apply_merges,
    cosine_coefficients,
    fit_fast,
    learn_merges,
    merge_pair,
)


def chunks(count: int = 300, horizon: int = 8, seed: int = 0) -> np.ndarray:
    """Smooth chunks of three dimensions, the second of which stands still."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, horizon)[None, :, None]
    start, end = rng.uniform(-0.05, 0.05, (2, count, 1, 3))
    actions = start + (end - start) * time
    actions[..., 1] = 0.5
    return actions.astype(np.float32)


@pytest.fixture(scope="module")
def code() -> FastCode:
    return fit_fast(chunks(), 128, 10.0)


def test_coefficients_by_hand():
    # Orthonormal DCT-II of (x0, x1): (x0 + x1) / sqrt 2 and (x0 - x1) / sqrt 2; of (1, 0) both are
    # .7071.
    values = np.array([[[1.0, 1.0], [0.0, 1.0]]])
    # Times 10 and rounded, frequency after frequency: dimension 0 gives 7 and 7, dimension 1 gives
    # 14 and 0.
    assert cosine_coefficients(values, 10.0).tolist() == [[7, 14, 7, 0]]


def test_pairs_are_learned_by_frequency():
    # Twice "0 1 0 1" and once "0 1 2": (0, 1) five times, becomes 3; then (3, 3) twice, becomes 4;
    # (3, 2) only once.
    rows = [[0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 2]]
    merges = learn_merges(rows, 3, 10)
    assert merges == ((0, 1), (3, 3))
    ranks = {pair: i for i, pair in enumerate(merges)}
    assert apply_merges([0, 1, 0, 1, 2], ranks, 3) == [4, 2]
    assert merge_pair([7, 7, 7], (7, 7), 9) == [9, 7]
    assert learn_merges(rows, 3, 1) == ((0, 1),)


def test_a_round_trip_loses_no_more_than_rounding(code):
    actions = chunks(100, seed=1)
    tokens, there = code.encode(torch.from_numpy(actions))
    back = code.decode(tokens, there).numpy()
    assert (back[..., 1] == 0.5).all()
    low, high = np.array(code.normalizer.low), np.array(code.normalizer.high)
    error = (back - actions)[..., [0, 2]] * 2 / (high - low)  # on the normalised scale
    inside = (np.abs(2 * (actions[..., [0, 2]] - low) / (high - low) - 1) <= 1).all(1)
    # A coefficient is off by 1 / 20 at most, and the transform is orthonormal: sqrt(8) / 20 in
    # norm.
    assert (np.linalg.norm(error, axis=1)[inside] <= np.sqrt(8) / 20 + 1e-5).all()


def test_it_compresses(code):
    tokens, there = code.encode(torch.from_numpy(chunks(100, seed=1)))
    assert code.num_symbols == 16
    assert tokens.shape == there.shape == (100, 16)
    assert (
        there.sum(1).float().mean() < 8
    )  # of 16 integers; the high frequencies of a smooth chunk are zeros
    assert code.num_tokens <= 128
    assert int(tokens.max()) < code.num_tokens


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_tokens_that_fit_are_a_chunk(data):
    code = fit_fast(chunks(60), 96, 10.0)
    lengths, left, row = code.lengths().tolist(), code.num_symbols, []
    while left:
        row.append(data.draw(st.sampled_from([t for t, n in enumerate(lengths) if n <= left])))
        left -= lengths[row[-1]]
    tokens = torch.zeros(1, code.num_symbols, dtype=torch.long)
    tokens[0, : len(row)] = torch.tensor(row)
    decoded = code.decode(tokens, torch.arange(code.num_symbols)[None] < len(row))
    assert decoded.shape == (1, 8, 3)
    assert decoded.isfinite().all()


def test_a_saved_code_is_the_same(code):
    again = FastCode.from_dict(code.to_dict())
    assert again == code
    assert again.expansions == code.expansions


def test_values_never_seen_are_clipped(code):
    wild = torch.full((1, 8, 3), 5.0)
    tokens, there = code.encode(wild)
    assert code.decode(tokens, there)[0, :, 0].max() < 0.2


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match=r"policy.num_tokens \(8\) is less than the \d+ integers"):
        fit_fast(chunks(), 8, 10.0)
