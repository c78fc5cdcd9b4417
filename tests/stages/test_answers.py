import pytest

from vla.stages.grounding import Answers
from vla.stages.reporting import tell_answers

BEFORE = Answers({"is_there": [True, False, True], "color_of": [False]}, {"where": [0.25, 0.75]})
AFTER = Answers({"color_of": [True], "is_there": [True, True, False]}, {"where": [0.0, 0.5]})


def test_outcomes_are_in_the_same_order_whatever_order_they_were_asked_in():
    assert BEFORE.outcomes == [False, True, False, True]
    assert AFTER.outcomes == [True, True, True, False]
    assert BEFORE.means() == {
        "accuracy/color_of": 0.0, "accuracy/is_there": pytest.approx(2 / 3), "error/where": 0.5,
    }  # fmt: skip


def test_answers_are_compared_question_by_question():
    before = tell_answers(BEFORE, None)
    assert (before["successes"], before["num_starts"], "against_before" in before) == (2, 4, False)
    after = tell_answers(AFTER, before["outcomes"])
    assert (after["successes"], after["num_starts"]) == (3, 4)
    assert "2 answers gained, 1 lost of 4" in after["against_before"]


def test_a_world_that_asks_for_numbers_only_has_no_share_of_right_answers():
    assert tell_answers(Answers({}, {"where": [0.5]}), None) == {"error/where": 0.5}
