"""The wheel holds all that a run without a checkout needs, and its commands run from an empty
folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = ("train", "eval", "view", "serve", "export", "collect", "pretrain")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The wheel, unpacked where an installation would put it."""
    uv = shutil.which("uv")
    if uv is None or subprocess.run([uv, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("uv builds the wheel and is not here")
    folder = tmp_path_factory.mktemp("wheel")
    command = [uv, "build", "--offline", "--wheel", "--out-dir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "offline" in built.stderr:
        pytest.skip("the build backend is not in uv's cache")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_settings_checkpoint_pages_and_plugin(unpacked):
    for name in (
        "vla/configs/train_vla.yaml",
        "vla/models/embedded/tiny/model.safetensors",
        "vla/viewer/static/page.html",
        "sim/simulator.py",
        "lerobot_policy_vla/__init__.py",
    ):
        assert (unpacked / name).is_file(), name
    (points,) = unpacked.glob("vla-*.dist-info/entry_points.txt")
    text = points.read_text()
    assert all(f"vla-{name} = " in text for name in COMMANDS)
    assert "tabletop = sim.simulator:TabletopSimulator" in text


def test_settings_are_found_without_a_checkout(unpacked, tmp_path):
    code = "import sys, vla; print(vla.__file__); from vla.commands.train import main; main(sys.argv[1:])"
    ended = subprocess.run(
        [sys.executable, "-c", code, "preset=smoke", "--cfg", "job"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(str(unpacked))
    assert "simulator: tabletop" in ended.stdout
    assert list(tmp_path.iterdir()) == []
