"""A package of users adds a task by one Python file and one YAML file."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import sim
from sim.experts import Expert
from sim.replay import replay
from sim.tasks import task_names

SOURCE = Path(__file__).parents[1] / "packages" / "hold_over"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package `hold_over`, installed into an empty folder on the import path."""
    shutil.copytree(SOURCE, tmp_path / "site")
    info = tmp_path / "site" / "hold_over-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hold_over\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vla.tasks]\nhold_over = hold_over:HoldOver\n")
    monkeypatch.syspath_prepend(tmp_path / "site")


def test_a_task_takes_one_file_and_one_yaml():
    files = [path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.*")]
    assert sorted(name for name in files if "pycache" not in name) == [
        "configs/sim/hold_over.yaml",
        "hold_over.py",
    ]


def test_the_expert_solves_it(package):
    assert "hold_over" in task_names()
    env = sim.make_vector("hold_over", robot="gantry", num_envs=32, cameras=(), num_threads=1)
    expert = Expert(env)
    env.reset(range(32))
    ids = np.arange(32)
    successes = 0
    while len(ids):
        result = env.step(expert.act(ids)[:, None], ids)
        successes += int(result.success.sum())
        ids = ids[~(result.terminated | result.truncated)]
    assert successes >= 31
    assert env.instructions[0].startswith("hold the ")


def test_its_failures_are_told_by_its_own_diagnosis(package):
    """The expert's own actions, cut off before the end: the block is still held on its way."""
    env = sim.make_vector("hold_over", robot="gantry", num_envs=1, cameras=(), num_threads=1)
    expert = Expert(env)
    env.reset([0])
    actions = []
    while True:
        action = expert.act()
        result = env.step(action[:, None])
        if result.success[0]:
            break
        actions.append(action[0])
    on_the_way = np.stack(actions)[:, None]
    released = on_the_way.copy()
    released[-4:, :, 6] = -1.0
    found = [replay(env, [0], [steps], look=False)[0].reason for steps in (on_the_way, released)]
    assert [reason.kind for reason in found] == ["did not get there in time", "let go of it"]
