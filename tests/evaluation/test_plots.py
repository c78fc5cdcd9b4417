"""Plots and videos show the numbers and frames they were given."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vla.evaluation.plots import plot_curves, plot_success, plot_time, timing_parts
from vla.evaluation.video import caption_strip, side_by_side, with_progress, write_video
from vla.statistics import SuccessRate


def colours_in(path: Path) -> set[tuple[int, int, int]]:
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return set(map(tuple, np.unique(pixels, axis=0).tolist()))


BLUE, ORANGE = (47, 111, 176), (217, 130, 43)


def test_a_success_plot_has_a_band_a_pair_of_marks_and_a_target(tmp_path: Path):
    rates = [(step, SuccessRate(step, 10, None)) for step in range(5)]
    ends = [(0, SuccessRate(2, 50, None)), (4, SuccessRate(45, 50, None))]
    plot_success(
        tmp_path / "a" / "s.png",
        {"during": rates, "held out": ends},
        "a run",
        "iteration",
        target=0.95,
    )
    assert {BLUE, ORANGE} <= colours_in(tmp_path / "a" / "s.png")
    plot_success(tmp_path / "one.png", {"during": rates}, "a run", "iteration")
    assert ORANGE not in colours_in(tmp_path / "one.png")


def test_curves_skip_records_without_the_key(tmp_path: Path):
    records = [
        {"step": step, "loss": 1.0 / (step + 1), "held_out": 0.5 if step == 8 else None}
        for step in range(10)
    ]
    plot_curves(
        tmp_path / "l.png",
        records,
        {"loss": "training", "held_out": "held out"},
        "SFT",
        "step",
        "loss",
    )
    assert {BLUE, ORANGE} <= colours_in(tmp_path / "l.png")


def test_time_is_cut_into_the_parts_of_each_stage(tmp_path: Path):
    seconds = {
        "total": 10.0,
        "rl": 8.0,
        "rl/rollout": 5.0,
        "rl/rollout/render": 1.0,
        "rl/other": 3.0,
        "other": 2.0,
    }
    assert timing_parts("rl", seconds) == {"rollout": 5.0, "other": 3.0}
    assert timing_parts("other", seconds) == {}
    plot_time(tmp_path / "t.png", seconds, "Time by stage")
    assert BLUE in colours_in(tmp_path / "t.png")


def frames(num_frames: int, size: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (num_frames, size, size, 3)).copy()


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("size", [64, 96, 45])
def test_a_video_shows_every_frame_of_every_camera(tmp_path: Path, size: int):
    red, blue = frames(6, size, (200, 30, 30)), frames(6, size, (30, 30, 200))
    write_video(tmp_path / "v.mp4", {"front": red, "wrist": blue}, "put it there", success=True)
    pictures = decoded(tmp_path / "v.mp4")
    # six frames and .75 s of the last at 20 a second
    assert len(pictures) == 6 + 15
    height, width, _ = pictures[0].shape
    assert height % 2 == width % 2 == 0
    assert width > 2 * 250
    assert np.abs(pictures[3][100, width // 4].astype(int) - (200, 30, 30)).max() < 12
    assert np.abs(pictures[3][100, 3 * width // 4].astype(int) - (30, 30, 200)).max() < 12
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_frames_of_other_lengths_or_none_are_refused(tmp_path: Path):
    for cameras in (
        {},
        {"front": frames(0, 8, (0, 0, 0))},
        {"a": frames(2, 8, (0, 0, 0)), "b": frames(3, 8, (0, 0, 0))},
    ):
        with pytest.raises(
            ValueError, match="a video needs the same number of frames, at least one"
        ):
            write_video(tmp_path / "v.mp4", cameras, "x", success=None)


def test_pixels_are_enlarged_to_squares_and_pictures_of_other_sizes_stand_together():
    small, large = frames(1, 2, (9, 9, 9))[0], frames(1, 300, (7, 7, 7))[0]
    small[0, 0] = 99
    row = side_by_side([small, large])
    # 2 pixels times 144 beside a gap of 4 and 300 pixels
    assert row.shape == (300, 288 + 4 + 300, 3)
    assert (row[:144, :144] == 99).all()
    assert (row[:144, 144:288] == 9).all()


def test_the_caption_tells_the_verdict_in_its_colour_and_fits():
    green, red = (64, 176, 108), (222, 88, 82)
    strips = {
        verdict: caption_strip(500, "words " * 40, verdict, ["front"])
        for verdict in (True, False, None)
    }
    assert {strip.shape for strip in strips.values()} == {(44, 500, 3)}
    has = {
        verdict: {colour for colour in (green, red) if (strip == colour).all(2).any()}
        for verdict, strip in strips.items()
    }
    assert has == {True: {green}, False: {red}, None: set()}
    half = with_progress(strips[None], 0.5)
    assert (half[-1, :250] > 200).all()
    assert (half[-1, 250:] < 50).all()
