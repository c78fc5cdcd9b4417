from types import SimpleNamespace

import pytest

from vla.stages import reporting
from vla.stages.grounding import Answers
from vla.train.timing import Timer

BEFORE = Answers({"is_there": [True, False, True], "color_of": [False]}, {"where": [0.25, 0.75]})
AFTER = Answers({"color_of": [True], "is_there": [True, True, False]}, {"where": [0.0, 0.5]})


def test_outcomes_are_in_the_same_order_whatever_order_they_were_asked_in():
    assert BEFORE.outcomes == [False, True, False, True]
    assert AFTER.outcomes == [True, True, True, False]
    assert BEFORE.means() == {
        "accuracy/color_of": 0.0, "accuracy/is_there": pytest.approx(2 / 3), "error/where": 0.5,
    }  # fmt: skip


@pytest.fixture
def run():
    results: dict = {}
    return SimpleNamespace(
        results=results,
        processes=SimpleNamespace(is_main=True),
        timer=Timer(),
        progress=SimpleNamespace(say=lambda text: None),
        finish=lambda name, values: results.setdefault("stages", {}).update({name: values}),
    )


def stage(run, name, monkeypatch, found):
    monkeypatch.setattr(reporting, "judge", lambda *_: found)
    config = SimpleNamespace(sim=None, data=SimpleNamespace(question_scenes=8))
    reporting.answers_stage(run, name, config, SimpleNamespace(model=None), None, None)
    return run.results["stages"][f"answers_{name}"]


def test_answers_are_compared_question_by_question(run, monkeypatch):
    before = stage(run, "before", monkeypatch, BEFORE)
    assert (before["successes"], before["num_starts"], "against_before" in before) == (2, 4, False)
    after = stage(run, "after", monkeypatch, AFTER)
    assert (after["successes"], after["num_starts"]) == (3, 4)
    assert "2 answers gained, 1 lost of 4" in after["against_before"]


def test_a_world_that_asks_for_numbers_only_has_no_share_of_right_answers(run, monkeypatch):
    assert stage(run, "before", monkeypatch, Answers({}, {"where": [0.5]})) == {"error/where": 0.5}
