"""The first numbers of a report."""

import pytest

import vla.report.robot_report as robot
import vla.text.text_report as text
from vla.rl.budget import Budget, Limits

IDLE = {
    "num_decisions": 8.0,
    "num_optimizer_steps": 0.0,
    "num_groups": 8.0,
    "groups_singleton": 8.0,
}


@pytest.mark.parametrize("report", [robot, text])
def test_a_run_that_learned_nothing_says_so_first(report):
    budget = Budget(Limits(num_iterations=1))
    budget.note_iteration(IDLE, 1.0)
    found = report.headline_tiles({"rl": budget.summary(1)})
    name, why = next(iter(found.values()))
    assert name == "nothing was learned"
    assert "of 8 groups 8 had a single trajectory" in why
    budget.note_iteration({**IDLE, "num_optimizer_steps": 1.0}, 2.0)
    assert report.headline_tiles({"rl": budget.summary(2)}) == {}
