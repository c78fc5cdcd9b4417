"""A package of users adds a simulator by one Python file and one YAML file, and trains in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "packages" / "point_reach"


@pytest.fixture
def site(tmp_path) -> Path:
    """The package as an installer would leave it."""
    folder = tmp_path / "site"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    info = folder / "point_reach-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: point_reach\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vla.simulators]\npoint = point_reach:PointSimulator\n")
    return folder


def train(site: Path, folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "train_vla.py"), "preset=smoke", "sim=point"]
    return subprocess.run(
        [*command, "--config-dir", str(site / "configs"), *settings],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_simulator_trains_by_the_smoke_preset(site, tmp_path):
    ended = train(site, tmp_path, "run_dir=run", "train.tensorboard=false")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run" / "report.html").exists()


def test_its_settings_are_checked_before_a_run_folder_exists(site, tmp_path):
    for setting, message in (
        ("sim.cameras=[front]", "must be [above]"),
        ("sim.speed=fast", "sim.speed (fast) must be"),
    ):
        ended = train(site, tmp_path, "run_dir=run", setting)
        assert ended.returncode == 2
        assert message in ended.stderr
        assert not (tmp_path / "run").exists()
