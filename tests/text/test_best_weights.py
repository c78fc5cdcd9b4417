"""A text run ends with its last weights, their average, or those that did best on validation
prompts."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import vla.pipelines.text.rlvr as rlvr
from vla.config import load
from vla.pipelines.text.run import run_in_folder
from vla.statistics import SuccessRate
from vla.training import rl_trainer
from vla.training.checkpoint import best_checkpoint, load_checkpoint
from vla.training.optim import copy_weights
from vla.training.rl_trainer import RLTrainer
from vla.training.run_folder import open_run

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
SUCCESSES = {0: 1, 1: 6, 2: 3, 3: 5}
"""Of 10 validation problems, by iteration."""


@pytest.fixture
def scripted(monkeypatch):
    """Trainers whose validations come out as scripted, and the weights that each validation had."""
    validated, trainers = {}, []

    class Scripted(RLTrainer):
        def __init__(self, run, rl, algorithm, learner, task):
            super().__init__(run, rl, algorithm, learner, replace(task, validate=self.scripted))
            trainers.append(self)

        def scripted(self) -> SuccessRate:
            iteration = self.loop.iteration
            validated[iteration] = copy_weights(self.actor)
            return SuccessRate(SUCCESSES[iteration], 10, None)

    monkeypatch.setattr(rlvr, "RLTrainer", Scripted)
    return validated, trainers


def go(tmp_path, *settings):
    config = load([*TINY, *settings, f"run_dir={tmp_path / 'run'}"])
    folder = open_run(config)
    run_in_folder(config, folder)
    return folder


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


BEST = "rl.load_best_at_end=true"
AVERAGE = "rl.ema_decay=0.5"


@pytest.mark.parametrize(
    ("settings", "validations", "ends_with", "ended_by"),
    [
        ([BEST], [0, 1, 2, 3], 1, "num_iterations"),
        ([], [1, 2, 3], 3, "num_iterations"),
        ([BEST, "rl.target_success=0.6"], [0, 1], 1, "target_success"),
        (["rl.patience=1"], [1, 2], 2, "patience"),
        ([AVERAGE, BEST], [0, 1, 2, 3], 1, "num_iterations"),
        ([AVERAGE], [1, 2, 3], 3, "num_iterations"),
    ],
)
def test_the_weights_a_run_ends_with(
    tmp_path, scripted, settings, validations, ends_with, ended_by
):
    validated, trainers = scripted
    folder = go(tmp_path, *settings)
    assert json.loads(folder.results.read_text())["rl"]["ended_by"] == ended_by
    assert list(validated) == validations
    last = trainers[0].actor.state_dict()
    assert same(validated[ends_with], last)
    assert not any(same(validated[i], last) for i in validations if i != ends_with)
    assert best_checkpoint(folder.checkpoints / "rl").name == "step-000001"
    curve = trainers[0].validation_curve
    assert [(i, rate.successes) for i, rate in curve] == [(i, SUCCESSES[i]) for i in validations]


def test_averaged_weights_are_validated_and_kept(tmp_path, scripted):
    """The average after each iteration is that of the weights the run trained, d = min(.5, 2/11),
    min(.5, 3/12), ... (`vla.training.optim.EMA`)."""
    validated, _ = scripted
    folder = go(tmp_path, AVERAGE, "train.checkpoint_every=1", "train.keep_checkpoints=3")
    own = [
        load_checkpoint(folder.checkpoints / "rl" / f"step-{i:06d}")["policy"] for i in (1, 2, 3)
    ]
    moved = [name for name in own[0] if not torch.equal(own[0][name], own[2][name])]
    assert moved
    for name in moved:
        average = validated[1][name]
        for decay, iteration in ((3 / 12, 2), (4 / 13, 3)):
            average = average + (1 - decay) * (own[iteration - 1][name] - average)
            torch.testing.assert_close(validated[iteration][name], average)
    assert not same(validated[3], own[2])
    exported = load_file(folder.path / "model" / "model.safetensors")
    ending = {name.removeprefix("model."): value for name, value in validated[3].items()}
    assert all(torch.equal(exported[name], ending[name]) for name in exported)


def test_a_checkpoint_of_another_layout_is_refused(tmp_path, monkeypatch):
    folder = go(tmp_path, "rl.num_iterations=1")
    monkeypatch.setattr(rl_trainer, "LAYOUT", 3)
    config = load([f"resume={folder.path}"])
    with pytest.raises(ValueError, match="older layout, which RL cannot resume: start a new run"):
        run_in_folder(config, open_run(config))
