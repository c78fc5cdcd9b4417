import json
import math

import pytest
from pydantic import TypeAdapter

from vla.evaluation.result import (
    EvaluationResult,
    compare_results,
    merge_shares,
    stage_result,
    success_result,
)
from vla.files.writing import write_json
from vla.training.run_folder import to_plain

STARTS = success_result(
    [7, 8, 9, 10],
    [True, False, True, True],
    0.7,
    groups=("reach", "lift", "lift", "lift"),
    measures={"return": (0.5, 0.25, 1.0, 0.25), "lift/success": (math.nan, 0.0, 1.0, 1.0)},
)
PROMPTS = EvaluationResult(
    "score",
    ("a", "b", "c"),
    (0.1, 0.5, 0.9),
    None,
    outputs=("x", "y", "z"),
    measures={"words": (1.0, 1.0, 1.0)},
)
PROBLEMS = success_result(["1 + 1?"], [True], None, groups=("sums",), outputs=("2",))


@pytest.mark.parametrize("result", [STARTS, PROMPTS, PROBLEMS])
def test_every_mode_has_one_json_shape(result, tmp_path):
    values = result.to_dict()
    assert list(values) == list(STARTS.to_dict())
    assert list(values["items"]) == ["id", "value", "group", "output", "measures"]
    write_json(tmp_path / "results.json", to_plain({"before": result}))
    read = json.loads((tmp_path / "results.json").read_text())["before"]
    assert read == values
    assert EvaluationResult.from_dict(read).to_dict() == values
    kind = TypeAdapter(dict[str, EvaluationResult])
    kept = kind.dump_python({"after": result}, mode="json")
    assert kept == {"after": values}
    assert kind.validate_python(kept)["after"].to_dict() == values


def test_a_result_holds_means_and_groups():
    values = STARTS.to_dict()
    assert (values["n"], values["mean"], values["decoding"]) == (4, 0.75, "sampled")
    assert values["text"] == (
        "75.0 % (3/4, 95 % Wilson interval 30.1 to 95.4, sampled at temperature 0.7)"
    )
    assert values["measures"] == {"return": 0.5, "lift/success": pytest.approx(2 / 3)}
    assert values["items"]["measures"]["lift/success"] == [None, 0.0, 1.0, 1.0]
    assert {name: row["n"] for name, row in values["groups"].items()} == {"lift": 3, "reach": 1}
    assert list(values["groups"]) == ["lift", "reach"]
    assert str(PROMPTS) == "0.500 (95 % bootstrap interval 0.100 to 0.900, n = 3, greedy)"


def test_successes_are_compared_item_by_item():
    before = success_result(range(10), [1, 1, 0, 0, 0, 0, 0, 0, 0, 0], None)
    after = success_result(range(10), [1, 0, 1, 1, 1, 1, 1, 0, 0, 0], None)
    test = compare_results(before, after)
    assert (test.lost, test.gained, test.difference) == (1, 5, 0.4)
    # 2 (1 + 6) / 64
    assert test.p_value == 0.21875
    assert str(test).startswith("+40.0 points (95 % interval ")
    assert str(test).endswith("5 starts gained, 1 lost of 10; McNemar exact p = 0.22)")
    scores = compare_results(PROMPTS, PROMPTS, "prompts")
    assert (scores.p_value, scores.interval) == (None, (0.0, 0.0))
    assert list(scores.to_dict()) == list(test.to_dict())
    sampled = success_result(range(10), [1] * 10, 1.0)
    assert compare_results(before, sampled).decoding == "sampled against greedy"


def test_results_on_other_starts_cannot_be_paired():
    with pytest.raises(ValueError, match="evaluate both on the same starts"):
        compare_results(success_result([1], [True], None), success_result([2], [True], None))


def test_shares_of_processes_become_the_whole():
    whole = STARTS
    shares = [whole.select([0, 3]), whole.select([1]), whole.select([2])]
    assert merge_shares(shares).to_dict() == whole.to_dict()
    nothing = success_result((), (), 0.7)
    assert merge_shares([whole.select([0]), nothing]).to_dict() == whole.select([0]).to_dict()


def test_an_earlier_version_is_read_or_refused_in_one_line():
    earlier = {
        "rate": 0.5,
        "successes": 2,
        "num_starts": 4,
        "wilson_95": [0.15, 0.85],
        "decoding": "sampled at temperature 0.7",
        "outcomes": "0110",
    }
    stages = {"evaluation_before": {"sampled": earlier}}
    result = stage_result(stages, "before", "sampled")
    assert str(result).startswith("50.0 % (2/4, 95 % Wilson interval 15.0 to 85.0, sampled at")
    assert compare_results(result, STARTS).gained == 2
    assert stage_result(stages, "after", "sampled") is None
    with pytest.raises(ValueError, match="without items, metric is of another version"):
        EvaluationResult.from_dict({"condition": "as trained", "temperature": None})
