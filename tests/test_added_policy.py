"""A package of users adds an action head by one Python file and one YAML file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_pipeline import TINY

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "packages" / "gaussian_head"
OF_TOKENS = ("policy.num_bins=16",)


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """The environment of a process that has the package on its import path."""
    site = tmp_path / "site"
    shutil.copytree(SOURCE, site, ignore=shutil.ignore_patterns("__pycache__"))
    info = site / "gaussian_head-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gaussian_head\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[vla.policies]\ngaussian = gaussian_head:GaussianSettings\n"
    )
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}


def train(environment: dict[str, str], *settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "train_vla.py")]
    configs = ["--config-dir", str(SOURCE / "configs"), "policy=gaussian"]
    return subprocess.run(
        [*command, *configs, *settings],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_head_takes_one_file_and_one_yaml():
    files = [path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.*")]
    assert sorted(name for name in files if "pycache" not in name) == [
        "configs/policy/gaussian.yaml",
        "gaussian_head.py",
    ]


def test_the_smoke_preset_trains_it(environment, tmp_path):
    """By imitation and by RL, on the tiny model."""
    folder = tmp_path / "run"
    settings = [setting for setting in TINY if setting not in OF_TOKENS]
    ended = train(environment, *settings, f"run_dir={folder}", "train.tensorboard=false")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"sft", "rl"} <= {row["stage"] for row in rows}
    assert "name: gaussian" in (folder / "config.yaml").read_text()


def test_its_settings_are_checked_before_torch_loads(environment):
    code = (
        "import sys; from vla.config import ConfigError, load, search_path\n"
        f"search_path.add_folder({str(SOURCE / 'configs')!r})\n"
        "for setting in ('policy.min_std=0', 'policy.min_sdt=1', 'policy=gausian'):\n"
        "    try: load(['policy=gaussian', setting])\n"
        "    except ConfigError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert printed[0] == "policy.min_std (0) must be greater than 0"
    assert printed[1].startswith("policy.min_sdt=1: no such setting; did you mean policy.min_std?")
    assert printed[2].startswith("policy=gausian: no such option; did you mean gaussian?")
    assert printed[3] == "False"
