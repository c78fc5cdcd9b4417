"""The library as a user calls it: a policy from a folder, environments, training, evaluation, and
the Python blocks of the README as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vla
from tests.test_pipeline import TINY
from vla import api

ROOT = Path(__file__).parents[1]
FEW = [*TINY, "rl.num_iterations=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> api.TrainedRun:
    folder = tmp_path_factory.mktemp("api") / "run"
    return api.train(*FEW, run_dir=folder)


def test_importing_the_library_loads_nothing_heavy():
    code = "import sys, vla; dir(vla); assert not {'torch', 'numpy', 'mujoco'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_training_returns_the_folder_and_its_results(run):
    assert (run.folder / "report.html").exists()
    assert "evaluation_before" in run.results["stages"]


def test_a_policy_acts_in_environments_by_its_arguments(run):
    policy = api.load_policy(run.folder)
    env = api.make_env(
        "pick_place", num_envs=2, robot="gantry", image_size=32, max_steps=40, num_threads=1
    )
    observation, _ = env.reset(seed=7)
    ended = 0
    for _ in range(45):
        action = policy.act(**observation)
        assert (action.shape, action.dtype) == ((2, 7), np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        assert reward.shape == terminated.shape == truncated.shape == (2,)
        policy.reset(info["ended"])
        ended += int(info["ended"].sum())
    assert ended >= 2
    again, _ = env.reset(seed=7)
    first, _ = env.reset(seed=7)
    np.testing.assert_array_equal(again["images"]["front"], first["images"]["front"])
    env.close()


def test_one_robot_and_a_batch_decide_alike(run):
    policy = api.load_policy(str(run.folder))
    images = {name: np.zeros((32, 32, 3), np.uint8) for name in policy.cameras}
    chunk = policy.act_chunk(images, [0.0] * 7, "pick the red cube")
    batch = policy.act_chunk(
        {name: picture[None] for name, picture in images.items()},
        np.zeros((1, 7)),
        ["pick the red cube"],
    )
    np.testing.assert_allclose(batch[0], chunk)
    actions = [policy.act(images, [0.0] * 7, "pick the red cube") for _ in range(len(chunk))]
    np.testing.assert_allclose(actions, chunk)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {}}, r"images has the cameras \[\], the policy needs \['front', 'wrist'\]"),
        ({"state": [0.0]}, r"state has the shape \[1\], \[7\] is expected"),
        ({"state": [float("nan")] * 7}, "state holds NaN"),
        ({"instruction": []}, "instruction must be a sentence"),
    ],
)
def test_wrong_arguments_are_named(run, changes, message):
    policy = api.load_policy(run.folder)
    images = {name: np.zeros((32, 32, 3), np.uint8) for name in policy.cameras}
    arguments = {"images": images, "state": [0.0] * 7, "instruction": "pick", **changes}
    with pytest.raises(ValueError, match=message):
        policy.act(**arguments)


def test_a_picture_of_another_size_is_named(run):
    policy = api.load_policy(run.folder)
    images = {name: np.zeros((48, 48, 3), np.uint8) for name in policy.cameras}
    with pytest.raises(ValueError, match=r"uint8 \[48, 48, 3\], uint8 \[32, 32, 3\]"):
        policy.act(images, [0.0] * 7, "pick")


def test_evaluation_returns_the_rates(run, tmp_path):
    found = api.evaluate(run.folder, num_starts=2, output=tmp_path / "evaluation")
    assert found.folder == tmp_path / "evaluation"
    assert len(found.conditions) == 1
    assert "greedy" in str(found)


def test_the_package_offers_the_functions_of_the_library():
    for name in ("train", "evaluate", "load_policy", "make_env"):
        assert getattr(vla, name) is getattr(api, name)


def test_a_text_run_is_trained_too(tmp_path):
    run = api.train("mode=text", "preset=smoke", "language_model=tiny", run_dir=tmp_path / "text")
    assert (run.folder / "results.json").exists()


def test_a_perturbation_that_the_simulator_lacks_is_refused(tmp_path):
    from vla.commands.evaluate import evaluate_from_options, parse
    from vla.training.run_folder import open_run

    with pytest.raises(ValueError, match="--perturb camra: no such perturbation; did you mean cam"):
        api.evaluate(tmp_path, perturb="camra")
    from vla.config import load

    config = load(["sim=gym", f"run_dir={tmp_path / 'run'}"])
    folder = open_run(config).path
    options = parse([str(folder), "--perturb", "camera"])
    with pytest.raises(
        ValueError, match="--perturb camera: no such perturbation of sim.simulator=gymnasium; "
    ):
        evaluate_from_options(options)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="did you mean pick_place"):
        api.make_env("pick_plaec")
    with pytest.raises(ValueError, match="sim.colour=3: no such setting"):
        api.make_env("pick_place", colour=3)
    with pytest.raises(ValueError, match="rl.num_iteration=1: no such setting"):
        api.train(rl={"num_iteration": 1})


README_BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", README_BLOCKS)
def test_the_readme_runs_as_written(block, tmp_path, monkeypatch):
    """The blocks name the run `runs/NAME`, and run in a folder where it is a smoke run."""
    monkeypatch.chdir(tmp_path)
    vla.train("preset=smoke", run_dir="runs/NAME")
    names = {"np": np, "numpy": np}
    exec(compile(block, "README.md", "exec"), names)
    action = names["action"]
    assert isinstance(action, np.ndarray)
    assert action.shape == (4, 7)
    assert np.isfinite(action).all()
