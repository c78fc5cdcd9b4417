"""Benchmarks run and print their ratios; how large they are is nobody's test."""

import importlib.util
import json
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
    small = [
        "--robot",
        "gantry",
        "--num-envs",
        "2",
        "--chunk",
        "2",
        "--image-size",
        "16",
        "--rounds",
        "1",
    ]
    assert main(["rollout", *small]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"environment / bare loop: \d+\.\d\d", printed)
    assert re.search(r"every control step: \d+\.\d\d times as fast", printed)


def test_an_unknown_benchmark_is_answered_with_those_there_are(main, capsys):
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "rollout" in capsys.readouterr().err


def test_a_table_of_policies_is_written_while_runs_are_missing(main, tmp_path):
    """SFT and one algorithm of one policy are there; the rest is not yet."""
    with pytest.raises(SystemExit):
        main(["nothing"])  # the folder of scripts is on the path from here on
    from benchmarks.kinds.table import policy_row, write_table

    rate = {"mean": 0.5, "n": 4, "interval_95": [0.15, 0.85], "measures": {"decisions": 10.0}}
    before, after = (
        {"greedy": rate, "sampled": rate | {"mean": 0.25}},
        {"greedy": rate | {"mean": 0.75}},
    )
    stages = {"evaluation_before": before, "evaluation_after": after}
    (tmp_path / "a").mkdir()
    seconds = {"sft": 3.2, "rl": 9.4, "evaluation_before/greedy": 2.0}
    (tmp_path / "a" / "results.json").write_text(json.dumps({"stages": stages, "seconds": seconds}))
    rows = [policy_row(p, {"grpo": tmp_path / p, "ppo": tmp_path / "none"}) for p in ("a", "b")]
    lines = write_table(tmp_path, rows, ["grpo", "ppo"]).splitlines()
    # 4 episodes of 10 decisions in 2 seconds: 20 queries a second.
    assert re.split(r"\s{2,}", lines[1]) == [
        "a",
        "greedy",
        "50.0 % [15.0, 85.0] n=4",
        "75.0 % [15.0, 85.0] n=4",
        "-",
        "3",
        "9/-",
        "20",
    ]
    assert re.split(r"\s{2,}", lines[2]) == ["a", "sampled", "25.0 % [15.0, 85.0] n=4", "-", "-"]
    assert re.split(r"\s{2,}", lines[3]) == ["b", "greedy", "-", "-", "-", "-", "-/-", "-"]
    assert json.loads((tmp_path / "table.json").read_text())[0]["grpo"]["greedy"]["mean"] == 0.75


def test_a_setting_behind_a_policys_name_is_for_that_policy_alone(main):
    with pytest.raises(SystemExit):
        main(["nothing"])
    from benchmarks.policies import policy_settings

    given = ["sim=push", "flow:policy.num_steps=8", "token:rl.target_step_kl=0.1", "data.path=a:b"]
    assert policy_settings("flow", given) == ["sim=push", "data.path=a:b", "policy.num_steps=8"]
    assert policy_settings("fast", given) == ["sim=push", "data.path=a:b"]


def test_every_kind_of_broken_message_is_answered_in_words(main):
    with pytest.raises(SystemExit):
        main(["nothing"])  # the folder of scripts is on the path from here on
    from benchmarks.hostile.attacks import send_broken

    from tests.serve.small_server import Named, served

    with served(Named()) as at:
        answers = send_broken(at.port, 200, seed=0)
    assert answers.total() == 200
    assert answers["answered in words"] > 150


@pytest.mark.usefixtures("main")
def test_spoiled_settings_are_refused_in_a_line_or_make_sense():
    from benchmarks.settings import fuzz

    counts, found = fuzz(
        ("preset=smoke", "sim=gym", "mode=text text=rlhf", "mode=text preference=kto"), 80, seed=1
    )
    assert found == []
    assert counts["accepted"] + counts["refused"] == 80


@pytest.mark.usefixtures("main")
def test_the_oracle_finds_what_is_odd():
    from benchmarks.fuzz.draw import Change
    from benchmarks.fuzz.oracle import explain_oddity

    wrong = {
        Change("rl.group_size", 4, True): "a boolean is no number",
        Change("sft.head_only", True, 1): "no boolean",
        Change("rl.learning_rate", 1e-4, 1e300): "too large",
        Change("rl.learning_rate", 1e-4, 3.0): "no learning rate",
        Change("rl.branch_discount", 0.9, 3): "no share",
        Change("policy.temperature", 1.0, 1e-11): "no temperature",
        Change("train.seed", 0, 2**63): "no seed",
        Change("run_dir", None, " "): "empty",
        Change("sft.weight_decay", 0.1, 1e-300): "too near to 0",
        Change("rl.max_second", ..., 3): "no such setting",
    }
    assert {change: explain_oddity(change) for change in wrong} == wrong
    assert explain_oddity(Change("sim.cameras", ["front"], ["front", "front"])) == "there twice"
    assert explain_oddity(Change("rl.group_size", 4, 8)) is None
