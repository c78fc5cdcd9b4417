import json
import math

import pytest

from vla.rewards.sample import Sample
from vla.rewards.verifiers.answer_matching import (
    contains,
    exact,
    find_answer_number,
    last_number,
    only_number,
)
from vla.rewards.verifiers.external_verifiers import parse_final_answer
from vla.rewards.verifiers.format_rewards import (
    inside_answer,
    json_value,
    think_format,
    think_tags,
    tool_call,
)
from vla.rewards.verifiers.text_metrics import bleu, chrf, rouge_l


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("23 + 41 = 64.", 64),
        ("The answer is 1,234.50", 1234.5),
        ("-7", -7),
        ("12-7", 7),  # a difference, not minus seven
        ("it is - 7", 7),
        ("(-3)", -3),
        ("none", None),
        ("3 apples and 4", 4),
        ("64, ", 64),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert find_answer_number(text) == number


def test_numbers():
    assert last_number(Sample("", "so 23 + 41 = 64!", "64")) == 1
    assert last_number(Sample("", "64 or 65", "64")) == 0
    assert last_number(Sample("", "no idea", "64")) == 0
    assert math.isnan(last_number(Sample("", "64", "unknown")))
    assert only_number(Sample("", " 64\n", "64")) == 1
    assert only_number(Sample("", "64.", "64")) == 0
    assert only_number(Sample("", "6 4", "64")) == 0


def test_text():
    assert exact(Sample("", " Paris\n", "paris")) == 1
    assert exact(Sample("", "Paris.", "Paris")) == 0
    words = {"words": ["cat", "Moon"]}
    assert contains(Sample("", "The moon saw a CAT.", "", facts=words)) == 1
    assert contains(Sample("", "The moon saw a category.", "", facts=words)) == 0
    assert contains(Sample("", "a yes b", "yes")) == 1


GOOD = "<think>2 + 2 is 4</think>\n<answer>4</answer>"


@pytest.mark.parametrize(
    ("completion", "score", "slope"),
    [
        (GOOD, 1, 1),
        ("  " + GOOD + "\n", 1, 1),
        (GOOD + " done", 0, 1),
        ("<think></think><answer>4</answer>", 0, 1),
        ("<think>a</think><answer>4", 0, 0.75),
        (GOOD + GOOD, 0, 0),
        ("<think>a<think>b</think></think><answer>4</answer>", 0, 0.5),
        ("<answer>4</answer><think>a</think>", 0, 1),
        ("4", 0, 0),
    ],
)
def test_think_format(completion, score, slope):
    sample = Sample("", completion, "4")
    assert think_format(sample) == score
    assert think_tags(sample) == slope


def test_an_answer_counts_inside_its_tags_only():
    verify = inside_answer(last_number)
    assert verify(Sample("", "<think>5</think><answer>it is 4</answer> 7", "4")) == 1
    assert verify(Sample("", "4", "4")) == 0


TOOLS = {
    "add": {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
}


def call(payload, **facts):
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return tool_call(
        Sample(
            "", f"I will call.<tool_call>{text}</tool_call>", "", facts={"tools": TOOLS, **facts}
        )
    )


def test_tool_calls():
    good = {"name": "add", "arguments": {"a": 1, "b": 2.5}}
    assert call(good) == 1
    assert call(good, call=good) == 1
    assert call(good, call={"name": "add", "arguments": {"a": 1, "b": 3}}) == 0
    assert call({"name": "mul", "arguments": {"a": 1, "b": 2}}) == 0  # no such tool
    assert call({"name": "add", "arguments": {"a": "1", "b": 2}}) == 0  # a string is no number
    assert call({"name": "add", "arguments": {"a": 1}}) == 0
    assert call({"name": ["add"], "arguments": {"a": 1, "b": 2}}) == 0
    assert call({**good, "why": "because"}) == 0
    assert call("{'name': 'add'}") == 0
    assert call("[" * 100_000) == 0
    assert tool_call(Sample("", "no call", "", facts={"tools": TOOLS})) == 0
    two = f"<tool_call>{json.dumps(good)}</tool_call>" * 2
    assert tool_call(Sample("", two, "", facts={"tools": TOOLS})) == 0


def test_json_against_a_schema():
    facts = {
        "schema": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}},
        }
    }
    assert json_value(Sample("", '{"name": "Ada"}', "", facts=facts)) == 1
    assert json_value(Sample("", '```json\n{"name": "Ada"}\n```', "", facts=facts)) == 1
    assert json_value(Sample("", '{"name": 3}', "", facts=facts)) == 0
    assert json_value(Sample("", 'Sure! {"name": "Ada"}', "", facts=facts)) == 0


def test_overlap_by_hand():
    reference = "the cat sat on the mat"
    assert bleu(Sample("", reference, reference)) == pytest.approx(1)
    assert bleu(Sample("", "dogs bark", reference)) < 0.1
    # the longest common subsequence of "the cat the mat" is 4 of 4 and 4 of 6 words: F = 2 * 1 *
    # (4/6) / (1 + 4/6) = .8
    assert rouge_l(Sample("", "the cat the mat", reference)) == pytest.approx(0.8)
    assert rouge_l(
        Sample("", "the cat the mat", "x", facts={"references": ["x", reference]})
    ) == pytest.approx(0.8)
    assert chrf(Sample("", reference, reference)) == pytest.approx(1)
    assert 0 < chrf(Sample("", "the cats", reference)) < 1


def test_final_answer():
    assert parse_final_answer("So the sum is 12 - 3 = 9.", "-4") == "9"
    assert parse_final_answer("  Alice \n", "Alice") == "Alice"
