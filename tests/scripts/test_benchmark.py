"""Benchmarks run and print their ratios; how large they are is nobody's test."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


@pytest.fixture
def main(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_rollout_prints_both_ratios(main, capsys):
    small = ["--robot", "gantry", "--num-envs", "2", "--chunk", "2", "--image-size", "16", "--rounds", "1"]
    assert main(["rollout", *small]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"environment / bare loop: \d+\.\d\d", printed)
    assert re.search(r"every control step: \d+\.\d\d times as fast", printed)


def test_an_unknown_benchmark_is_answered_with_those_there_are(main, capsys):
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "rollout" in capsys.readouterr().err
