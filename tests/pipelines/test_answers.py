import json

import pytest

import vla.runtime
from tests.test_pipeline import TINY
from vla.commands.train import main
from vla.pipelines.robot.evaluation_stages import summarize_answers
from vla.pipelines.robot.grounding.answers import QuestionAnswers

BEFORE = QuestionAnswers(
    {"is_there": [True, False, True], "color_of": [False]}, {"where": [0.25, 0.75]}
)
AFTER = QuestionAnswers(
    {"color_of": [True], "is_there": [True, True, False]}, {"where": [0.0, 0.5]}
)


def test_outcomes_are_in_the_same_order_whatever_order_they_were_asked_in():
    assert BEFORE.outcomes == [False, True, False, True]
    assert AFTER.outcomes == [True, True, True, False]
    assert BEFORE.means() == {
        "accuracy/color_of": 0.0,
        "accuracy/is_there": pytest.approx(2 / 3),
        "error/where": 0.5,
    }


def test_answers_are_compared_question_by_question():
    before = summarize_answers(BEFORE, None)
    assert before["result"]["items"]["value"] == [0, 1, 0, 1]
    assert "against_before" not in before
    after = summarize_answers(AFTER, before)
    assert (after["result"]["mean"], after["result"]["n"]) == (0.75, 4)
    assert after["result"]["groups"]["is_there"]["n"] == 3
    # The stage of an earlier version held the outcomes alone.
    earlier = {"text": before["text"], "decoding": "greedy", "outcomes": BEFORE.outcomes}
    assert summarize_answers(AFTER, earlier)["against_before"] == after["against_before"]
    assert "2 answers gained, 1 lost of 4" in after["against_before"]


def test_a_world_that_asks_for_numbers_only_has_no_share_of_right_answers():
    assert summarize_answers(QuestionAnswers({}, {"where": [0.5]}), None) == {"error/where": 0.5}


@pytest.mark.parametrize(("moved", "asked"), [("weights", ["before", "after_rl"]), ("head", [])])
def test_answers_are_asked_before_the_first_stage_that_moves_the_model(
    tmp_path, monkeypatch, moved, asked
):
    """SFT trains the head alone here; where RL moves the rest, what it did to answers is compared
    with before."""
    monkeypatch.setattr(vla.runtime, "prepare", lambda *arguments, **settings: None)
    folder = tmp_path / "run"
    few = [
        "sft.head_only=true",
        "sft.head_steps=2",
        "grounding.num_steps=2",
        "evaluation.num_videos=0",
    ]
    rl = ["rl.num_iterations=1", "evaluation.num_starts=2", f"rl.adapt={moved}"]
    assert main([*TINY, *few, *rl, f"run_dir={folder}"]) == 0
    stages = json.loads((folder / "results.json").read_text())["stages"]
    assert [
        name for name in ("before", "after", "after_rl") if f"answers_{name}" in stages
    ] == asked
    if asked:
        assert "answers gained" in stages["answers_after_rl"]["against_before"]
