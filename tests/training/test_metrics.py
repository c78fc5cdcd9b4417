"""The metrics of a run survive a crash and a resume, and TensorBoard shows the same."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from vla.training.metrics import MetricsLog, read_metrics


def test_records_are_lines_and_read_back_by_stage(tmp_path: Path):
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write("sft", 1, {"loss": 0.5, "done": False})
    log.write(
        "rl", 1, {"success": torch.tensor(0.25), "kl": math.nan, "ratio": math.inf, "note": "x"}
    )
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"stage": "sft", "step": 1, "loss": 0.5, "done": false}',
        '{"stage": "rl", "step": 1, "success": 0.25, "kl": null, "ratio": null, "note": "x"}',
    ]
    assert read_metrics(tmp_path, "sft") == [
        {"stage": "sft", "step": 1, "loss": 0.5, "done": False}
    ]
    assert len(read_metrics(tmp_path)) == log.num_records == 2


def test_a_resumed_log_goes_on_where_the_checkpoint_stood(tmp_path: Path):
    log = MetricsLog(tmp_path, tensorboard=False)
    for step in range(5):
        log.write("sft", step, {"loss": float(step)})
    resumed = MetricsLog(tmp_path, num_records=3, tensorboard=False)
    resumed.write("sft", 3, {"loss": 30.0})
    assert [record["loss"] for record in read_metrics(tmp_path)] == [0.0, 1.0, 2.0, 30.0]
    assert resumed.num_records == 4


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path):
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write("sft", 0, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as opened:
        opened.write('{"stage": "sft", "ste')
    assert len(read_metrics(tmp_path)) == 1
    MetricsLog(tmp_path, num_records=2, tensorboard=False).write("sft", 1, {"loss": 0.5})
    assert [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ] == [0, 1]


def test_a_new_log_starts_empty(tmp_path: Path):
    MetricsLog(tmp_path, tensorboard=False).write("sft", 0, {"loss": 1.0})
    MetricsLog(tmp_path, tensorboard=False)
    assert read_metrics(tmp_path) == []
    assert read_metrics(tmp_path / "nowhere") == []


def test_tensorboard_shows_the_numbers(tmp_path: Path):
    log = MetricsLog(tmp_path)
    log.write("rl", 3, {"success": 0.5, "note": "text is left out", "kl": math.nan})
    log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "rl"))
    events.Reload()
    assert events.Tags()["scalars"] == ["rl/success"]
    assert [(event.step, event.value) for event in events.Scalars("rl/success")] == [(3, 0.5)]


class FakeTracker:
    """Takes the calls that trackio and wandb have in common."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name: str):
        return lambda *arguments, **named: self.calls.append((name, arguments, named))


def test_trackers_are_told_the_same_numbers(tmp_path: Path, monkeypatch):
    fake = FakeTracker()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    (tmp_path / "config.yaml").write_text("mode: robot\n")
    log = MetricsLog(tmp_path, tensorboard=False, trackers=("trackio",))
    log.write("rl", 3, {"success": torch.tensor(0.5), "note": "left out", "kl": math.nan})
    log.close()
    assert fake.calls == [
        ("init", (), {"project": "vla", "name": tmp_path.name, "config": {"mode": "robot"}}),
        ("define_metric", ("rl/*",), {"step_metric": "rl/step"}),
        ("log", ({"rl/success": 0.5, "rl/step": 3},), {}),
        ("finish", (), {}),
    ]


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match=r"train.trackers names wandb, which is not installed: pip install wandb"
    ):
        MetricsLog(tmp_path, tensorboard=False, trackers=("wandb",))
