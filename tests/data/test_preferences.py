import json

import pytest

from vla.data.preferences import BinaryFeedback, Ranking, parse_preference, read_preferences
from vla.data.rows import Row

USER = {"role": "user", "content": "hi"}


def said(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "chosen": "good", "rejected": "bad"},
        {"prompt": [USER], "chosen": [said("good")], "rejected": [said("bad")]},
        {"prompt": [USER], "chosen": [USER, said("good")], "rejected": [USER, said("bad")]},
        {"chosen": [USER, said("good")], "rejected": [USER, said("bad")]},
        {"question": "hi", "chosen": "good", "rejected": "bad"},
        {
            "conversations": [{"from": "human", "value": "hi"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ],
)
def test_pairs_in_every_form(row):
    ranking = parse_preference(Row(row, "here"))
    assert ranking == Ranking((USER,), ("good", "bad"), None, "here")


def test_margins():
    row = {
        "prompt": "hi",
        "chosen": "good",
        "rejected": "bad",
        "score_chosen": 8,
        "score_rejected": 5.5,
    }
    assert parse_preference(Row(row, "")).margin == 2.5
    assert (
        parse_preference(
            Row({"prompt": "hi", "chosen": "a", "rejected": "b", "margin": 3}, "")
        ).margin
        == 3.0
    )


def test_rankings_by_score_rating_rank_or_order():
    three = {"prompt": "hi", "completions": ["x", "y", "z"]}
    assert parse_preference(Row({**three, "scores": [0.1, 0.9, 0.5]}, "")).completions == (
        "y",
        "z",
        "x",
    )
    assert parse_preference(Row({**three, "scores": [0.1, 0.9, 0.5]}, "")).margin == pytest.approx(
        0.8
    )
    assert parse_preference(Row({**three, "ratings": [5, 1, 3]}, "")).completions == ("x", "z", "y")
    assert parse_preference(Row({**three, "ranks": [2, 3, 1]}, "")).completions == ("z", "x", "y")
    assert parse_preference(Row(three, "")).completions == ("x", "y", "z")


@pytest.mark.parametrize(
    ("label", "liked"), [(True, True), (0, False), ("up", True), ("bad", False)]
)
def test_thumbs(label, liked):
    assert parse_preference(
        Row({"prompt": "hi", "completion": "x", "label": label}, "w")
    ) == BinaryFeedback((USER,), "x", liked, "w")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "hi", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal"),
        ({"chosen": "a", "rejected": "b"}, "the row needs a prompt"),
        (
            {"chosen": [USER, said("a"), USER], "rejected": [USER, said("b")]},
            "differ in their last message only",
        ),
        (
            {"prompt": "hi", "completions": ["a"], "scores": [1]},
            r"completions \(1\) must be two or more different ones",
        ),
        ({"prompt": "hi", "completions": ["a", "b"], "scores": [1]}, "2 completions with 1 scores"),
        ({"prompt": "hi", "completions": ["a", "b"], "scores": [1, 1]}, "scores hold equal values"),
        (
            {"prompt": "hi", "completions": ["a", "b"], "scores": [1, float("nan")]},
            "no finite number",
        ),
        (
            {"prompt": "hi", "completion": "x", "label": "maybe"},
            r"label \('maybe'\) must be true or false",
        ),
        ({"prompt": "hi", "chosen": [USER], "rejected": "b"}, "chosen must be one assistant turn"),
        ({"prompt": "hi"}, "has the columns prompt; needed are chosen and rejected"),
    ],
)
def test_a_bad_row_is_named(row, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_preference(Row(row, "data.jsonl, line 7"))
    assert str(error.value).startswith("data.jsonl, line 7: ")


def test_kinds_are_not_mixed(tmp_path):
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "completion": "b", "label": True},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="line 2: thumbs and comparisons are mixed"):
        read_preferences(str(tmp_path / "data.jsonl"))
