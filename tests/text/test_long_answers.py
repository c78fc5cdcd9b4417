"""Answers of any length the settings allow, and the positions that a model has for them."""

import json

import pytest

from vla.config import load
from vla.pipelines.text.run import run_in_folder
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
RL = ["rl.num_iterations=1", "rl.num_start_states=1", "rl.group_size=2"]
RLVR = [*RL, "text.num_evaluation=1", "text.num_validation=1"]


def go(folder, *overrides):
    config = load([*SMALL, f"run_dir={folder}", *overrides])
    return run_in_folder(config, open_run(config))


@pytest.mark.parametrize("new_tokens", [16, 128, 512, 2048])
def test_an_answer_may_be_longer_than_a_prompt(tmp_path, new_tokens):
    long = [f"text.max_new_tokens={new_tokens}", "text.max_prompt_tokens=80"]
    results = go(
        tmp_path / "run", *RLVR, *long, "algorithm=ppo"
    )  # whose critic learns where no answer is right
    assert results["after"].n == 1
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["completion_tokens"] <= new_tokens
    assert record["num_optimizer_steps"] == 1
    assert record["logprob_gap_max"] < 1e-4


CALLING = [
    "text.tool=calculator",
    "text.max_turns=3",
    "text.families=[add1]",
    "text.max_prompt_tokens=140",
]


@pytest.mark.parametrize(
    "overrides",
    [
        [
            *RLVR,
            "text.max_new_tokens=64",
            "text.max_prompt_tokens=80",
            "algorithm=ppo_text",
            "text.num_samples=2",
            "text.num_beams=2",
        ],
        [*RLVR, "text.max_new_tokens=64", *CALLING],
        [
            "text=rejection",
            "text.generation.max_new_tokens=64",
            "text.problems_per_round=1",
            "text.num_evaluation=2",
        ],
        [
            *RL,
            "text=rlhf",
            "text.generation.max_new_tokens=64",
            "text.prompts.num_train=4",
            "text.reward_model.num_steps=1",
        ],
    ],
)
def test_every_way_of_asking_gives_room_to_long_answers(tmp_path, overrides):
    assert go(tmp_path / "run", *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["text.max_new_tokens=70000"],
            "text.max_prompt_tokens .160. and text.max_new_tokens .70000. ask for 70160",
        ),
        (
            ["text=rejection", "text.generation.max_new_tokens=70000"],
            "text.generation.max_prompt_tokens .* and text.generation.max_new_tokens .70000. ask "
            "for 70",
        ),
        (
            ["text=preference", "text.generation.max_new_tokens=70000"],
            "text.generation.max_prompt_tokens .* and text.generation.max_new_tokens .70000. ask "
            "for 70",
        ),
    ],
)
def test_a_context_that_is_too_short_is_named_before_anything_is_asked(
    tmp_path, overrides, message
):
    with pytest.raises(ValueError, match=message + ".* 65536 positions"):
        go(tmp_path / "run", *overrides)
