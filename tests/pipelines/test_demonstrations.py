"""A run says what it found in its demonstrations, and refuses them before a simulator loads or a
run has a folder."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sim.simulator import TabletopSimulator
from vla.config import load
from vla.data import lerobot_format as form
from vla.data.collection import PROPRIO_NAMES
from vla.data.lerobot_writer import Episode, LeRobotWriter
from vla.interrupt import StopRequest
from vla.pipelines.robot.demonstrations import load_or_collect_demonstrations
from vla.training.metrics import NullLog
from vla.training.progress import Progress
from vla.training.run import Run
from vla.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")


@pytest.fixture
def folder(tmp_path):
    """Three episodes of two frames, the second of which failed; no action spec."""
    spec = form.DatasetSpec(
        fps=20,
        robot="panda",
        cameras=("front", "wrist"),
        image_size=(8, 8),
        proprio_names=PROPRIO_NAMES,
        action_names=NAMES,
        action_spec={},
        source={},
        storage="images",
    )
    writer = LeRobotWriter(tmp_path / "demos", spec)
    for seed in range(3):
        pictures = {camera: np.zeros((2, 8, 8, 3), np.uint8) for camera in spec.cameras}
        numbers = np.full((2, 7), 0.01 * seed, np.float32)
        writer.add(
            Episode(pictures, numbers, numbers, np.zeros(2, bool), "lift the cube", seed, seed != 1)
        )
    found = writer.finish()
    (found / form.ACTION_SPEC_PATH).unlink()
    return found


class Narrow(TabletopSimulator):
    """The simulator, with other limits of its actions."""

    action_spec = {"names": NAMES, "low": [-0.015] * 7, "high": [0.015] * 7}  # noqa: RUF012


def run_with(folder, tmp_path, *settings, world=TabletopSimulator):
    """(demonstrations, lines that the run says, what it keeps of them)."""
    config = load([f"data.path={folder}", "sim.image_size=16", *settings])
    (tmp_path / "run").mkdir(exist_ok=True)
    said = io.StringIO()
    run = Run(
        RunFolder(tmp_path / "run"), NullLog(), StopRequest(), config.train, progress=Progress(said)
    )
    demos = load_or_collect_demonstrations(run, config, world(config.sim))
    return demos, said.getvalue().splitlines(), run.results["stages"]["demonstrations"]


def test_what_was_found_is_said_and_kept(folder, tmp_path):
    demos, said, kept = run_with(folder, tmp_path)
    assert demos.num_episodes == 3
    assert "demonstrations: 1 of 3 episodes" in said[0]
    assert "are imitated too; data.failures=drop leaves them out" in said[0]
    assert "does not state the units, kinds, frame, gripper sign" in said[1]
    assert (kept["num_failures"], kept["num_episodes"]) == (1, 3)
    assert [f"demonstrations: {note}" for note in kept["notes"]] == said


def test_failures_are_left_out_where_the_settings_say_so(folder, tmp_path):
    demos, said, kept = run_with(folder, tmp_path, "data.failures=drop")
    assert demos.episodes.tolist() == [0, 2]
    assert "are left out (data.failures=drop)" in said[0]
    assert kept["num_failures"] == 0


def test_the_share_outside_the_limits_is_a_setting(folder, tmp_path):
    """A third of the frames moves by .02; under limits of .015 the default of a tenth is
    exceeded."""
    with pytest.raises(
        ValueError, match=r"33.3 % of the frames.*data.max_outside_limits \(0.1\) allows 10 %"
    ):
        run_with(folder, tmp_path, world=Narrow)
    _, said, _ = run_with(folder, tmp_path, "data.max_outside_limits=0.4", world=Narrow)
    assert any("33.3 % of the frames" in line for line in said)


def test_it_is_refused_before_a_simulator_loads(folder):
    """Cameras, names, rate and state are held against info.json: neither MuJoCo nor a picture is
    opened for that."""
    path = folder / form.INFO_PATH
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fps": 30}))
    code = f"""
import sys
from vla.simulator import make_simulator
from vla.config import load
from vla.pipelines.robot.demonstrations import check_dataset

for settings, part in (([], "control_hz is 30"), (["sim.cameras=[front]"], "control_hz is 30")):
    config = load(["data.path={folder}", *settings])
    try:
        check_dataset(config, make_simulator(config.sim))
    except ValueError as error:
        assert part in str(error), error
    else:
        raise AssertionError("it passed")
try:
    make_simulator(load(["sim.cameras=[cam_high]"]).sim)
except ValueError as error:
    assert "names cam_high, the simulator draws front, wrist: choose from these; lerobot-train" in str(error), error
assert "mujoco" not in sys.modules
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
