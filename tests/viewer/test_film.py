"""Films of before and after: size, captions, and pictures that stand still after an episode's
end."""

import numpy as np
import pytest
from PIL import Image

from vla.statistics import SuccessRate
from vla.viewer.film import CAPTION_PIXELS, GREEN, RED, FilmedEpisode, Half, write_film


def half(title: str, successes: int, lengths: list[int]) -> Half:
    rng = np.random.default_rng(len(lengths))
    episodes = [
        FilmedEpisode(rng.integers(0, 255, (length, 32, 32, 3), dtype=np.uint8), i < successes)
        for i, length in enumerate(lengths)
    ]
    return Half(title, SuccessRate(successes, len(lengths), None), episodes)


def test_a_film_shows_both_sides_and_colours_the_outcomes(tmp_path):
    path = tmp_path / "film.webp"
    size = write_film(path, [half("before RL", 0, [9, 5]), half("after RL", 2, [7, 9])], 20.0)
    with Image.open(path) as film:
        assert film.n_frames == 5  # steps 0, 2, 4, 6, 8
        film.seek(4)
        last = np.asarray(film.convert("RGB")).astype(int)
    assert size == path.stat().st_size < 2_000_000
    top = last[CAPTION_PIXELS + 1]
    assert np.abs(top[20] - RED).max() < 40
    assert np.abs(top[-20] - GREEN).max() < 40


def test_the_caption_holds_the_number_of_starts_the_interval_and_the_decoding():
    # Wilson, 1 of 2: centre .5, half-width .4055
    assert half("after RL", 1, [3, 3]).caption == (
        "50.0 % of 2 held-out starts, 95 % interval 9.5 to 90.5, greedy"
    )


def test_a_film_that_cannot_be_small_enough_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("vla.viewer.film.MAX_BYTES", 10)
    with pytest.raises(ValueError, match="film fewer starts"):
        write_film(tmp_path / "film.webp", [half("before RL", 0, [3, 3])] * 2, 20.0)
