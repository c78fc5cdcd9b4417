"""Settings of the simulator are checked by name before MuJoCo loads, and tasks of users' packages
are found by theirs."""

import subprocess
import sys
from typing import get_args

import pytest

from sim.perturbations import PERTURBATIONS, PerturbationName
from sim.settings import check_settings, reward_names
from sim.tasks import TASKS, load_task

SETTINGS = {
    "task": "pick_place",
    "robot": "panda",
    "cameras": ("front", "wrist"),
    "reward": {"success": 1.0},
    "randomization": {},
    "num_distractors": 1,
    "perturbation": "none",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "reahc"}, "sim.task='reahc' is unknown; did you mean 'reach'?"),
        ({"task": ("push", "reahc")}, "sim.task='reahc' is unknown; did you mean 'reach'?"),
        ({"task": ()}, "sim.task is empty; name one or more of reach, push, lift"),
        ({"task": "stack", "num_distractors": 0}, "sim.task=stack needs two blocks; set sim.num_d"),
        ({"robot": "pandas"}, "sim.robot='pandas' is unknown; did you mean 'panda'?"),
        ({"cameras": ("frnt",)}, "sim.cameras='frnt' is unknown; did you mean 'front'?"),
        ({"reward": {"grap": 1.0}}, "sim.reward='grap' is unknown; did you mean 'grasp'?"),
        ({"randomization": {"hand_yam": 1.0}}, "did you mean 'hand_yaw'?"),
        ({"randomization": {"hand_yaw": -1.0}}, r"hand_yaw \(-1.0\) must not be negative"),
        ({"perturbation": "lihgt"}, "sim.perturbation='lihgt' is unknown; did you mean 'light'?"),
        ({"num_distractors": 3}, r"sim.num_distractors \(3\) must be from 0 to 2"),
    ],
)
def test_a_wrong_setting_is_named_with_the_nearest_right_one(changes, message):
    with pytest.raises(ValueError, match=message):
        check_settings(**SETTINGS | changes)


def test_nothing_heavy_is_loaded():
    program = (
        "import sys; from sim.settings import check_settings; "
        f"check_settings(**{SETTINGS}); "
        "sys.exit(any(name in sys.modules for name in ('mujoco', 'gymnasium', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_task_is_called_what_the_table_calls_it():
    assert {name: load_task(name).name for name in TASKS} == {name: name for name in TASKS}


def test_settings_offer_the_perturbations_that_exist():
    assert tuple(PERTURBATIONS) == get_args(PerturbationName)


def test_weights_may_name_terms_of_any_task_of_ours():
    assert reward_names(("reach",)) == ("reach", "success", "push", "grasp", "lift", "place")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function that installs entry points of the group `vla.tasks`."""

    def install(entries, name="added"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[vla.tasks]\n{entries}\n")
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_a_package_may_not_take_the_name_of_a_task_of_ours(package):
    package("reach = my_package:Reach")
    with pytest.raises(ValueError, match="'reach' of my_package:Reach has the name of another"):
        check_settings(**SETTINGS | {"task": "none"})


def test_a_task_that_does_not_import_is_named(package):
    package("tidy = no_such_package:Tidy")
    with pytest.raises(ValueError, match="sim.task=tidy is registered as no_such_package:Tidy"):
        check_settings(**SETTINGS | {"task": "tidy"})
