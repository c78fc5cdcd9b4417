"""Problems of a file in RLVR: what is found before anything is learned, and by which row it is
named."""

import json
from pathlib import Path

import pytest

from vla.config import load
from vla.pipelines.text.run import run_in_folder
from vla.text.problem_files import read_problems
from vla.training.run_folder import open_run

SMALL = [
    "mode=text",
    "preset=smoke",
    "train.tensorboard=false",
    "train.num_threads=1",
    "language_model.width=16",
    "language_model.depth=1",
    "language_model.num_heads=2",
]
RLVR = [*SMALL, "rl.num_iterations=1"]


def go(folder, *overrides):
    small = SMALL if "text=rejection" in overrides else RLVR
    config = load([*small, f"run_dir={folder}", *overrides])
    return run_in_folder(config, open_run(config))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def file(tmp_path):
    rows = [{"prompt": f"What is {i} + {i}?", "answer": 2 * i} for i in range(40)]
    rows[11]["prompt"] += " Think about it." * 30
    return write(tmp_path / "mine.jsonl", *rows)


def test_a_prompt_that_is_too_long_is_found_before_anything_is_asked(tmp_path, file, capsys):
    long = r"mine.jsonl, line 12: the prompt takes \d+ tokens, text"
    rlvr = [f"text.families=[{file}]", "text.max_prompt_tokens=80", "text.max_new_tokens=2"]
    with pytest.raises(ValueError, match=rf"{long}.max_prompt_tokens is 80: raise it"):
        go(tmp_path / "stops", *rlvr)
    assert not (tmp_path / "stops" / "before.json").exists()
    results = go(tmp_path / "skips", *rlvr, "text.on_bad_row=skip", "text.num_evaluation=900")
    assert "text.num_evaluation (900) is more than there are: " in capsys.readouterr().out
    assert results["rows"][file]["left out"] == 1
    assert json.loads((tmp_path / "skips" / "problems.json").read_text())["num_train"][file] < 39
    rejection = [
        "text=rejection",
        f"text.families=[{file}]",
        "text.generation.max_prompt_tokens=80",
    ]
    with pytest.raises(ValueError, match=rf"{long}.generation.max_prompt_tokens is 80: raise it"):
        go(tmp_path / "rejection", *rejection)


@pytest.fixture
def bad_verifiers(monkeypatch):
    folder = str(Path(__file__).parents[1] / "rewards")
    monkeypatch.setenv("PYTHONPATH", folder)
    monkeypatch.syspath_prepend(folder)


def test_rewards_are_tried_before_the_model_loads(tmp_path, bad_verifiers):
    with pytest.raises(
        ValueError, match="text.rewards.bad_verifiers.nothing: verifier .* cannot be imported"
    ):
        go(tmp_path / "b", "++text.rewards={bad_verifiers.nothing: 1.0}")
    rows = [
        {"prompt": f"Say {i}", "answer": "x", "verifier": "no_such.module.verify"}
        for i in range(20)
    ]
    file = write(tmp_path / "mine.jsonl", *rows)
    with pytest.raises(
        ValueError, match="mine.jsonl, line .*: verifier 'no_such.module.verify' cannot be imported"
    ):
        go(tmp_path / "c", f"text.families=[{file}]")


def test_rewards_that_never_say_anything_end_the_run(tmp_path, bad_verifiers):
    with pytest.raises(ValueError, match="gives_none failed on all of its 16 samples"):
        go(tmp_path / "a", "++text.rewards={bad_verifiers.gives_none: 1.0}")
    with pytest.raises(
        ValueError,
        match=r"not one of 16 answers could be scored.*cannot_tell: gave nan.* .16 times",
    ):
        go(tmp_path / "b", "++text.rewards={bad_verifiers.cannot_tell: 1.0}")


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": [{"role": "user", "content": "6 x 7?"}],
            "data_source": "openai/gsm8k",
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "42"},
            "extra_info": {"split": "train"},
        },
        {"question": "6 x 7?", "answer": "6 x 7 is <<6*7=42>>42\n#### 42"},
        {"problem": "6 x 7?", "solution": "It is $6 \\cdot 7 = \\boxed{42}$."},
        {"prompt": [{"role": "user", "content": "6 x 7?"}], "solution": "42"},
        {"prompt": "6 x 7?", "ground_truth": 42},
    ],
)
def test_rows_as_verl_trl_and_gsm8k_write_them(tmp_path, row):
    [problem] = read_problems(write(tmp_path / "mine.jsonl", row), None)
    assert (problem.question, problem.answer, problem.verifier) == ("6 x 7?", "42", "last_number")


def test_a_ground_truth_of_another_form_is_named(tmp_path):
    row = {"prompt": "Who?", "reward_model": {"ground_truth": {"target": ["Ada"]}}}
    with pytest.raises(
        ValueError, match=r"line 1: reward_model.ground_truth .* must be a text or a number"
    ):
        read_problems(write(tmp_path / "mine.jsonl", row), None)
    with pytest.raises(ValueError, match=r"line 1: nothing says which completion is right"):
        read_problems(write(tmp_path / "mine.jsonl", {"prompt": "Who?", "reward_model": {}}), None)


def test_a_system_message_of_a_row_is_asked(tmp_path):
    row = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 x 7?"}]
    [problem] = read_problems(write(tmp_path / "mine.jsonl", {"prompt": row, "answer": 42}), None)
    assert list(problem.prompt_messages) == row


def test_cut_completions_can_be_left_out_of_the_update(tmp_path):
    """Answers of two tokens of a random model are all cut: a critic learns from them without the
    filter, with it there is nothing to learn from.
    """
    steps = []
    for masked in ("false", "true"):
        go(
            tmp_path / masked,
            "text.max_new_tokens=2",
            f"text.mask_truncated_completions={masked}",
            "algorithm=ppo",
        )
        record = json.loads((tmp_path / masked / "metrics.jsonl").read_text().splitlines()[0])
        assert record["finished"] == 0.0
        steps.append(record["num_optimizer_steps"])
    assert steps == [1.0, 0.0]
