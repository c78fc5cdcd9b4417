"""A text run ends with its last weights, or where it is asked to with those that did best on
validation prompts."""

import json

import pytest
import torch

import vla.text.rlvr as rlvr
from vla.config import load
from vla.pipelines.text.run import run
from vla.text.refine import Refinement
from vla.train.checkpoint import best_checkpoint
from vla.train.optim import weights_of
from vla.train.run_folder import open_run

TINY = [
    "mode=text",
    "preset=smoke",
    "language_model.width=16",
    "language_model.depth=1",
    "train.tensorboard=false",
    "train.num_threads=1",
    "text.num_evaluation=2",
    "algorithm=ppo_text",
    "rl.num_iterations=3",
    "rl.evaluate_every=1",
    "rl.learning_rate=1e-2",
]
SUCCESS = {0: 0.1, 1: 0.6, 2: 0.3, 3: 0.5}


@pytest.mark.parametrize(
    ("settings", "ends_with", "ended_by"),
    [
        (["rl.load_best_at_end=true"], 1, "num_iterations"),
        ([], 3, "num_iterations"),
        (["rl.load_best_at_end=true", "rl.target_success=0.6"], 1, "target_success"),
        (["rl.patience=1"], 2, "patience"),
    ],
)
def test_the_weights_a_run_ends_with(tmp_path, monkeypatch, settings, ends_with, ended_by):
    seen, made = {}, []

    def scripted(iteration: int) -> dict[str, float]:
        seen[iteration] = weights_of(made[0].policy)
        return {"validation_success": SUCCESS[iteration], "validation_starts": 2.0}

    def refinement(*arguments, **named) -> Refinement:
        made.append(Refinement(*arguments, **{**named, "evaluate": scripted}))
        return made[0]

    monkeypatch.setattr(rlvr, "Refinement", refinement)
    config = load([*TINY, *settings, f"run_dir={tmp_path / 'run'}"])
    folder = open_run(config)
    run(config, folder)
    assert json.loads(folder.results.read_text())["rl"]["ended_by"] == ended_by
    last = made[0].policy.state_dict()
    assert all(torch.equal(weights, last[name]) for name, weights in seen[ends_with].items())
    others = [weights for number, weights in seen.items() if number != ends_with]
    assert not any(
        all(torch.equal(weights[name], last[name]) for name in last) for weights in others
    )
    assert best_checkpoint(folder.checkpoints / "rl").name == "step-000001"
