"""A run's folder says what was asked and how, is never shared by two runs, and holds results that
JSON can read."""

import json
import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from vla.config import freeze, load
from vla.evaluation.result import success_result
from vla.training.run_folder import RunFolder, open_run, to_plain
from vla.training.run_lock import process_start_time


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_gets_a_folder_of_its_own_with_its_settings():
    config = load(["rl.num_iterations=3"])
    first, second = open_run(config), open_run(config)
    assert first.path != second.path
    assert first.path.parent == Path("runs")
    assert "pick_place-token-dr_grpo" in first.path.name
    assert freeze(yaml.safe_load((first.path / "config.yaml").read_text())) == config
    (session,) = json.loads((first.path / "run.json").read_text())
    assert session["command"]
    assert session["libraries"]["torch"].startswith("2.")
    assert " core" in session["machine"]


def test_a_folder_that_holds_a_run_is_not_overwritten():
    open_run(load(["run_dir=here"]))
    with pytest.raises(ValueError, match=r"run_dir \(here\) holds a run: resume=here continues it"):
        open_run(load(["run_dir=here"]))


def test_resuming_opens_the_same_folder_and_notes_the_session():
    first = open_run(load(["run_dir=here", "rl.num_iterations=3"]))
    again = open_run(load(["resume=here", "rl.num_iterations=5"]))
    assert again.path == first.path
    assert len(json.loads((again.path / "run.json").read_text())) == 2
    assert load(["resume=here"]).rl.num_iterations == 5


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="processes are told apart by /proc"
)
def test_two_processes_do_not_write_to_one_folder():
    path = open_run(load(["run_dir=here"])).path
    (path / ".process").write_text(f"{os.getppid()} {process_start_time(str(os.getppid()))}")
    with pytest.raises(ValueError, match=rf"process {os.getppid()} is writing to here"):
        open_run(load(["resume=here"]))
    for gone in (f"{os.getppid()} 1", "999999999 12345"):
        (path / ".process").write_text(gone)
        open_run(load(["resume=here"]))
        assert (
            (path / ".process").read_text()
            == f"{os.getpid()} {process_start_time(str(os.getpid()))} {socket.gethostname()}"
        )
    (path / ".process").write_text("1 12345 another-host")
    with pytest.raises(
        ValueError, match=r"process 1 on another-host .* delete here/.process once it is over"
    ):
        open_run(load(["resume=here"]))


@dataclass(frozen=True)
class Pair:
    a: float
    b: Path


def test_results_are_plain_json():
    folder = RunFolder(Path())
    assert folder.read_results() == {}
    rate = success_result(range(2), [True, False], None)
    folder.write_results(
        {
            "before": rate,
            "pair": Pair(math.nan, Path("x")),
            "array": np.eye(2),
            3: (np.int64(1), True),
        }
    )
    assert folder.read_results() == {
        "before": rate.to_dict(),
        "pair": {"a": None, "b": "x"},
        "array": [[1.0, 0.0], [0.0, 1.0]],
        "3": [1, True],
    }
    assert to_plain(np.float32(math.inf)) is None
