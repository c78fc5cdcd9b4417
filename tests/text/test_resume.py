"""Every text mode goes on from where it was stopped, and ends as if it never had been: weights,
numbers, samples."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vla.config import load
from vla.interrupt import Interrupted
from vla.pipelines.text.run import run_in_folder
from vla.rewards.gold_rewards import GOLD_REWARDS
from vla.training import resumable_work as pieces_module
from vla.training.run import Run
from vla.training.run_folder import open_run

TINY = [
    "mode=text",
    "language_model=tiny",
    "language_model.vocabulary_size=288",
    "language_model.width=32",
    "language_model.depth=1",
    "train.tensorboard=false",
    "train.num_threads=1",
    "train.checkpoint_every=2",
]
OPEN = [
    "text.generation.max_prompt_tokens=100",
    "text.generation.max_new_tokens=6",
    "text.prompts.num_evaluation=4",
    "text.gold=letters",
]
RL = [
    "rl.num_iterations=3",
    "rl.num_start_states=2",
    "rl.group_size=2",
    "rl.micro_batch_rows=8",
    "rl.learning_rate=1e-2",
]
FIT = [
    "text.fit.num_steps=3",
    "text.fit.learning_rate=1e-2",
    "text.fit.batch_size=4",
    "text.fit.micro_batch_size=4",
]
PROBLEMS = ["text.families=[add1]", "text.num_problems=100", "text.num_evaluation=4"]
MODES = {
    "rlvr": [
        *PROBLEMS,
        *RL,
        "algorithm=ppo",
        "algorithm.entropy_coefficient=0.1",
        "text.families=[add1,mul1]",
        "text.num_validation=2",
        "text.max_prompt_tokens=160",
        "text.max_new_tokens=40",
        "text.format_sft_steps=3",
        "text.num_samples=2",
        "rl.max_resamples=1",
        "text.curriculum_threshold=0.5",
    ],
    "sft": ["text.sources=[add1]", "text.row_tokens=200", *FIT],
    "preference": [*OPEN, *FIT, "text.rounds=2"],
    "kto": [*OPEN, *FIT, "preference=kto"],
    "rlaif": [*OPEN, *FIT],
    "rlhf": [
        *OPEN,
        *RL,
        "algorithm=ppo",
        "text.demonstrations=4",
        "text.sft.num_steps=3",
        "text.reward_model.num_steps=3",
        "text.truncation_reward=null",
        "text.sft.micro_batch_size=4",
    ],
    "control": [*OPEN, *FIT, "text.levels=2"],
    "constitution": [
        *OPEN,
        *FIT,
        "text.rounds=1",
        "text.sft.num_steps=3",
        "text.generation.max_new_tokens=60",
        "text.generation.sampling.temperature=2.0",
    ],
    "rejection": [
        *PROBLEMS,
        *FIT,
        "text.rounds=2",
        "text.problems_per_round=4",
        "text.samples_per_prompt=2",
        "text.generation.max_new_tokens=5",
        "text.generation.max_prompt_tokens=160",
        "+text.rewards.finished=1.0",
        "text.min_reward=0.0",
    ],
}


@pytest.fixture(autouse=True)
def _a_gold_reward_that_a_random_model_can_differ_in(monkeypatch):
    monkeypatch.setitem(
        GOLD_REWARDS, "letters", lambda prompt, text: sum(map(str.isalpha, text)) / 10
    )


class Killed(BaseException):
    """What ends a session without a chance to save."""


def go(folder: Path, prompts: Path, mode: str, *more: str) -> None:
    given = (
        [*MODES[mode], f"text.prompts.path={prompts}"]
        if "text.gold=letters" in MODES[mode]
        else MODES[mode]
    )
    asked = [f"resume={folder}"]
    if not (folder / "config.yaml").exists():
        asked = [
            *TINY,
            f"text={'preference' if mode == 'kto' else mode}",
            f"run_dir={folder}",
            *given,
            *more,
        ]
    config = load(asked)
    run_in_folder(config, open_run(config))


def dying(write: Callable[..., None], left: list[int]) -> Callable[..., None]:
    """`write`, after which a session ends that has written as often as it may: half of them are
    asked to stop."""

    def call(first, *arguments, **named):
        write(first, *arguments, **named)
        left[0] -= 1
        if left[0] == 0 and left[1] and isinstance(first, Run):
            first.stop.requested, first.stop.number = True, signal.SIGTERM
        elif left[0] == 0:
            raise Killed

    return call


def sessions(folder: Path, prompts: Path, mode: str) -> int:
    """Sessions until the run is over, each ended when it has written a few times."""
    for count in range(1, 100):
        left = [2 + 2 * (count % 3), count % 2]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "note_saved", dying(Run.note_saved, left))
            patch.setattr(
                pieces_module, "write_atomically", dying(pieces_module.write_atomically, left)
            )
            try:
                go(folder, prompts, mode, "train.checkpoint_seconds=1e-6")
            except (Killed, Interrupted):
                continue
        return count
    raise AssertionError("the run never ends")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def lines(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def numbers(folder: Path) -> dict:
    found = json.loads((folder / "results.json").read_text())
    return {
        name: value
        for name, value in found.items()
        if "seconds" not in name and name != "peak_memory_bytes"
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path, mode):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(20)))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    go(whole, prompts, mode)
    assert sessions(broken, prompts, mode) > 1
    one, other = weights(whole), weights(broken)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert numbers(whole) == numbers(broken)
    for name in ("metrics.jsonl", "samples.jsonl", "before.json", "after.json"):
        assert lines(whole / name) == lines(broken / name), name
