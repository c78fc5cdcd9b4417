"""A policy that nothing has changed is not judged a second time, and the report says so."""

import pytest
import yaml

import vla.pipelines.robot.pipeline as robot
from vla.config import load
from vla.evaluation.result import success_result
from vla.interrupt import Stop
from vla.report.robot_report import write_report
from vla.training.metrics import NullLog
from vla.training.run import Run
from vla.training.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    return Run(RunFolder(tmp_path), NullLog(), Stop(), load([]).train)


@pytest.fixture
def judged(monkeypatch):
    calls = []

    def evaluation_stage(run, name, config, *judge) -> None:
        calls.append(judge)
        run.finish("evaluation_after", {"greedy": {}})

    monkeypatch.setattr(robot, "evaluation_stage", evaluation_stage)
    return calls


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (["rl.num_iterations=0"], 0),
        (["rl.num_iterations=1"], 1),
        (["policy=flow", "rl.num_iterations=0", "recap.num_rounds=1"], 1),
    ],
)
def test_the_second_judgement_is_for_a_policy_that_has_changed(run, judged, settings, count):
    assert robot.evaluate_after(run, 1, load(settings), "policy") == bool(count)
    assert judged == [("policy",)] * count
    assert ("left_out" in run.results["stages"]["evaluation_after"]) == (count == 0)


def test_a_run_that_goes_on_with_rl_is_judged_after_it(run, judged):
    robot.evaluate_after(run, 0, load(["rl.num_iterations=0"]), "policy")
    assert robot.evaluate_after(run, 2, load(["rl.num_iterations=2"]), "policy")
    assert robot.evaluate_after(run, 2, load(["rl.num_iterations=2"]), "policy")
    assert len(judged) == 1  # what was judged once is not judged again
    assert robot.evaluate_after(run, 5, load(["rl.num_iterations=5"]), "policy")
    assert len(judged) == 2  # three more iterations have changed it


def test_the_report_says_that_it_was_judged_once(run, tmp_path):
    rate = success_result(range(10), [True] * 5 + [False] * 5, None).to_dict()
    robot.evaluate_after(run, 0, load(["rl.num_iterations=0"]))
    run.finish("evaluation_before", {"greedy": rate})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(load([]).model_dump(mode="json")))
    page = write_report(tmp_path).read_text()
    assert "Evaluated once, on held-out starts: nothing changed the policy" in page
    assert "<p>Success, greedy</p><b>50.0 %</b>" in page
    assert "not finished" not in page
