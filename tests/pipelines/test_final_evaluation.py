"""A policy that nothing has changed is not evaluated a second time, and the report says so."""

import pytest
import yaml

import vla.pipelines.robot.pipeline as robot
from vla.config import load
from vla.evaluation.result import success_result
from vla.interrupt import StopRequest
from vla.pipelines.robot.evaluation_stages import PolicyEvaluation
from vla.report.robot_report import write_report
from vla.training.metrics import NullLog
from vla.training.run import Run
from vla.training.run_folder import RunFolder

EVALUATION = object.__new__(PolicyEvaluation)  # only handed on


@pytest.fixture
def run(tmp_path):
    return Run(RunFolder(tmp_path), NullLog(), StopRequest(), load([]).train)


@pytest.fixture
def evaluated(monkeypatch):
    calls = []

    def evaluation_stage(run, name, evaluation) -> None:
        assert evaluation is EVALUATION
        calls.append(evaluation)
        run.finish_stage("evaluation_after", {"greedy": {}})

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
def test_the_second_evaluation_is_for_a_policy_that_has_changed(run, evaluated, settings, count):
    assert robot.final_evaluation_stage(run, load(settings), 1, EVALUATION) == bool(count)
    assert len(evaluated) == count
    assert ("left_out" in run.results["stages"]["evaluation_after"]) == (count == 0)


def test_a_run_that_goes_on_with_rl_is_evaluated_after_it(run, evaluated):
    robot.final_evaluation_stage(run, load(["rl.num_iterations=0"]), 0, EVALUATION)
    assert robot.final_evaluation_stage(run, load(["rl.num_iterations=2"]), 2, EVALUATION)
    assert robot.final_evaluation_stage(run, load(["rl.num_iterations=2"]), 2, EVALUATION)
    assert len(evaluated) == 1  # the same policy is not evaluated again
    assert robot.final_evaluation_stage(run, load(["rl.num_iterations=5"]), 5, EVALUATION)
    assert len(evaluated) == 2  # three more iterations have changed it


def test_the_report_says_that_it_was_evaluated_once(run, tmp_path):
    rate = success_result(range(10), [True] * 5 + [False] * 5, None).to_dict()
    robot.final_evaluation_stage(run, load(["rl.num_iterations=0"]), 0, EVALUATION)
    run.finish_stage("evaluation_before", {"greedy": rate})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(load([]).model_dump(mode="json")))
    page = write_report(tmp_path).read_text()
    assert "Evaluated once, on held-out starts: nothing changed the policy" in page
    assert "<p>Success, greedy</p><b>50.0 %</b>" in page
    assert "not finished" not in page
