"""Elo from preferences: hand-worked ratings, players who never lose, intervals that hold the
truth."""

import numpy as np
import pytest

from vla.evaluation.elo import Preferences, elo_ratings, rank_players


def preferences(rows: list[tuple[int, int, float]]) -> Preferences:
    first, second, score = zip(*rows, strict=True)
    return Preferences(
        np.array(first), np.array(second), np.array(score, float), np.arange(len(rows))
    )


def test_two_players_stand_apart_by_the_logarithm_of_their_odds():
    # 3 wins to 1, half a win added on both sides: 3.5 to 1.5, and 400 log10(3.5 / 1.5) = 147.19,
    # half of it each way.
    found = preferences([(0, 1, 1), (0, 1, 1), (1, 0, 0), (0, 1, 0)])
    np.testing.assert_allclose(
        elo_ratings(found.wins(2)), [1000 + 73.596, 1000 - 73.596], atol=0.01
    )


def test_ten_to_one_is_four_hundred_points():
    np.testing.assert_allclose(
        np.diff(elo_ratings(np.array([[0.0, 1.0], [10.0, 0.0]]))), [400.0], atol=1e-6
    )


def test_three_players_agree_with_the_odds_that_made_them():
    # P(i beats j) = s_i / (s_i + s_j) with s = 1, 2, 6: 400 log10(2) = 120.41 and 400 log10(3) =
    # 190.85 apart.
    strength = np.array([1.0, 2.0, 6.0])
    wins = strength[:, None] / (strength[:, None] + strength[None])
    np.fill_diagonal(wins, 0)
    np.testing.assert_allclose(np.diff(elo_ratings(wins)), [120.412, 190.849], atol=0.01)


def test_who_never_lost_stays_finite_and_who_never_met_is_refused():
    # 4 to 0 is 4.5 to 0.5: 400 log10(9) = 381.70.
    best, worst = rank_players(["a", "b"], preferences([(1, 0, 1)] * 4))
    assert (best.name, best.win_rate, best.num_comparisons) == ("b", 1.0, 4)
    assert best.rating - worst.rating == pytest.approx(381.70, abs=0.01)
    assert str(best).startswith(
        "b: Elo 1191 (95 % bootstrap interval 1191 to 1191; preferred in 100.0 % of 4"
    )
    with pytest.raises(ValueError, match="never compared"):
        elo_ratings(preferences([(0, 1, 1), (2, 3, 1)]).wins(4))


def test_the_interval_shrinks_with_more_prompts_and_holds_the_truth():
    generator = np.random.default_rng(1)

    def width(count: int) -> tuple[float, bool]:
        rows = [(0, 1, float(generator.random() < 0.7)) for _ in range(count)]
        (first, *_) = [s for s in rank_players(["a", "b"], preferences(rows)) if s.name == "a"]
        truth = 1000 + 200 * np.log10(0.7 / 0.3)
        return first.interval[1] - first.interval[0], first.interval[0] <= truth <= first.interval[
            1
        ]

    (wide, _), (narrow, holds) = width(40), width(1000)
    assert narrow < wide / 3
    assert holds


def test_an_undecided_judge_makes_equals():
    found = rank_players(["a", "b"], preferences([(0, 1, 0.5)] * 8))
    assert [s.rating for s in found] == pytest.approx([1000, 1000])
