"""Every setting of a run is read by it, or refused by name: found from the types of the settings
and from real runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.settings_read import Reads, recorded_reads, without_effect
from vla.config import load
from vla.pipelines.text.run import run_in_folder
from vla.training.run_folder import open_run

TINY = [
    "mode=text",
    "preset=smoke",
    "language_model.vocabulary_size=288",
    "language_model.width=16",
    "language_model.depth=1",
    "train.tensorboard=false",
    "train.num_threads=1",
]
OPEN = [
    "text.generation.max_new_tokens=4",
    "text.prompts.num_evaluation=2",
    "text.prompts.num_train=4",
]
VARIED = ["text.generation.max_new_tokens=24", "text.generation.sampling.temperature=2.0"]
ONE = "text.{}.num_steps=1"
RUNS = {
    "rlvr": [
        "rl.num_iterations=1",
        "rl.num_start_states=2",
        "rl.group_size=2",
        "text.num_evaluation=2",
    ],
    "rlvr ppo": [
        "algorithm=ppo_text",
        "rl.num_iterations=1",
        "rl.group_size=2",
        "text.num_evaluation=2",
    ],
    "sft": ["text.fit.num_steps=1", "text.fit.batch_size=2"],
    "preference": [*OPEN, ONE.format("fit"), "text.samples_per_prompt=2"],
    "rlaif": [*OPEN, ONE.format("fit"), "text.judge.name=gold"],
    "rlhf": [*OPEN, ONE.format("reward_model"), "text.samples_per_prompt=2", "rl.num_iterations=1"],
    "rejection": [
        "text.num_problems=20",
        "text.num_evaluation=2",
        "text.generation.max_new_tokens=64",
        "text.rounds=1",
        "text.problems_per_round=4",
        "text.samples_per_prompt=8",
        "text.min_reward=0",
        ONE.format("fit"),
    ],
    "control": [*OPEN, ONE.format("fit"), "text.guidance=1", "text.samples_per_prompt=2"],
    "constitution": [*OPEN, *VARIED, ONE.format("fit"), ONE.format("sft"), "text.rounds=1"],
}
READ_ELSEWHERE = {
    "mode",
    "run_dir",
    "resume",
    "train.checkpoint_every",
    "train.checkpoint_seconds",
    "train.keep_checkpoints",
}
"""By the script, or by checkpoints that a run of one step does not come to."""


@pytest.mark.parametrize("name", RUNS)
def test_what_a_text_run_does_not_read_is_refused_by_name(name: str, tmp_path: Path):
    given = [*TINY, f"text={name.split()[0]}", *RUNS[name], f"run_dir={tmp_path / 'run'}"]
    reads = Reads()
    with recorded_reads(reads):
        config = load(given)
        run_in_folder(config, open_run(config))
    assert without_effect(reads, given, READ_ELSEWHERE) == set()
