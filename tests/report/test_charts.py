"""Charts say what they were given, in the place where it belongs; pages escape what is not
markup."""

import re
from pathlib import Path

import pytest

from vla.evaluation.result import success_result
from vla.report.charts import (
    Axis,
    Curve,
    Interval,
    format_tick,
    interval_chart,
    line_chart,
    tick_values,
    time_share_chart,
)
from vla.report.page import Markup, data_uri, fact_list, number_tiles, page, section, table, to_html


def test_ticks_are_round_and_cover():
    assert tick_values(0.0, 1.0) == [0.0, 0.5, 1.0] or tick_values(0.0, 1.0) == [
        0.0,
        0.2,
        0.4,
        0.6,
        0.8,
        1.0,
    ]
    assert tick_values(0.13, 0.42)[0] <= 0.13
    assert tick_values(0.13, 0.42)[-1] >= 0.42
    assert tick_values(-3.0, 7.0) == [-5.0, 0.0, 5.0, 10.0]
    assert [format_tick(v) for v in (0.25, 12_000.0, 200.0)] == ["0.25", "12k", "200"]


def test_an_axis_maps_its_ends_to_its_ends():
    axis = Axis(10.0, 20.0, 100.0, 300.0)
    assert (axis(10.0), axis(20.0), axis(12.5)) == (100.0, 300.0, 150.0)


def test_a_curve_with_a_band_is_drawn_and_one_without_points_is_not():
    band = Curve("rate", [0, 1, 2], [0.1, 0.2, 0.4], [0.0, 0.1, 0.3], [0.2, 0.3, 0.5])
    drawn = line_chart("Success", "share", "iteration", [band, Curve("empty", [], [])], (0.0, 1.0))
    assert drawn.count("<polyline") == drawn.count("<polygon") == 1
    assert "rate: 0.4 at 2" in drawn
    assert "legend" not in drawn  # one curve needs none
    assert line_chart("Nothing", "", "", [Curve("empty", [], [])]) == ""
    assert line_chart("No numbers", "", "", [Curve("nan", [1], [float("nan")])]) == ""


def test_a_gap_in_a_curve_is_left_out():
    drawn = line_chart("x", "", "", [Curve("y", [0, 1, 2], [1.0, float("nan"), 3.0])])
    (points,) = re.findall(r'<polyline points="([^"]*)"', drawn)
    assert len(points.split()) == 2


def test_before_and_after_are_marks_with_bars_and_no_line_between_them():
    ends = Curve("held-out", [0, 20], [0.3, 0.9], [0.25, 0.85], [0.35, 0.95])
    drawn = line_chart("Success", "share", "iteration", [ends], (0.0, 1.0))
    assert "<polyline" not in drawn
    assert "<polygon" not in drawn
    (bars,) = re.findall(r'<path d="([^"]*)"', drawn)
    assert bars.count("M") == bars.count("V") == drawn.count("<circle") == 2


def test_an_interval_lies_between_its_bounds_on_the_axis():
    drawn = interval_chart("Success", "", [Interval("camera", "greedy", 0.5, 0.25, 0.75, "50 %")])
    # The axis goes from 168 to 700: .25, .5 and .75 of 532 pixels
    assert 'x1="301.0" x2="567.0"' in drawn
    assert 'cx="434.0"' in drawn
    assert "50 %" in drawn


def test_time_is_shown_by_stage_with_its_share():
    drawn = time_share_chart(
        "Time", {"sft": 30.0, "rl": 10.0, "tiny": 0.01}, {"rl": {"rollout": 6.0, "other": 4.0}}
    )
    assert "30.0 s, 75 %" in drawn
    assert "rollout: 6.0 s" in drawn
    assert "tiny" not in drawn
    assert time_share_chart("Time", {}, {}) == ""


def test_what_is_shown_is_escaped_unless_it_is_markup():
    assert to_html("<b>") == "&lt;b&gt;"
    assert to_html(Markup("<b>")) == "<b>"
    assert to_html({"a": 1.23456, "b": None}) == "a: 1.235<br>b: –"
    assert "&lt;script&gt;" in table(["<script>"], [["x"]])
    assert table(["x"], []) == fact_list({}) == number_tiles({}) == section("Empty") == ""


def test_a_page_holds_everything_itself(tmp_path: Path):
    picture = tmp_path / "p.png"
    picture.write_bytes(b"abc")
    assert data_uri(picture) == "data:image/png;base64,YWJj"
    text = page("A <title>", "lead", [section("One", "<p>inside</p>")])
    assert "<title>A &lt;title&gt;</title>" in text
    assert "prefers-color-scheme: dark" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)


@pytest.mark.parametrize("when", ["finished", "begun"])
def test_a_report_is_made_of_what_stands_in_the_folder(tmp_path: Path, when: str):
    import json

    import yaml

    from vla.report.robot_report import write_report

    settings = {
        "sim": {"task": "pick_place"},
        "policy": {"name": "token"},
        "algorithm": {"name": "grpo"},
        "evaluation": {"num_validation_starts": 10},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    if when == "begun":
        assert "not finished" in write_report(tmp_path).read_text()
        return
    rate = success_result(range(10), [True] * 5 + [False] * 5, None).to_dict()
    test = {"text": "it rose", "difference": 0.5, "mcnemar_exact_p": 0.06}
    results = {
        "stages": {"evaluation_before": {"greedy": rate}, "evaluation_after": {"greedy": rate}},
        "comparison": {"greedy": test},
        "seconds": {"total": 120.0, "rl": 90.0, "rl/rollout": 60.0, "other": 30.0},
        "model": {"num_parameters": 2_000_000, "num_draws": 32},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    records = [
        {
            "stage": "rl",
            "step": i,
            "success": 0.25,
            "num_trajectories": 4.0,
            "control_steps": 80.0,
            "seconds": 10.0 * i,
            "validation_success": 0.3 if i == 2 else None,
            "entropy": 2.0 - i,
            "reached_grasp": 0.5,
        }
        for i in (1, 2, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    text = write_report(tmp_path).read_text()
    assert "50.0 %" in text
    assert "5 of 10; 95 % interval 23.7 to 76.3 %" in text
    assert "McNemar exact p = 0.06" in text
    assert "validation starts, greedy: 0.3 at 2" in text
    assert "length: 20 at 1" in text  # 80 control steps of 4 trajectories
    assert "throughput: 8 at 2" in text  # 80 steps in 10 seconds
    assert "grasp: 0.5 at 3" in text
    assert "90.0 s, 75 %" in text
    assert "not finished" not in text
