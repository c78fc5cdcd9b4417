"""A package of users adds an algorithm by one Python file and one YAML file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "packages" / "spo"
METADATA = "Metadata-Version: 2.1\nName: spo\nVersion: 1.0\n"
ALGORITHM = "[vla.algorithms]\nspo = spo:SPO\n"
OPTIONS = "[vla.config]\nspo = spo_configs\n"
SMALL = (
    *("preset=smoke", "algorithm=spo", "rl.reference=rollout", "train.num_threads=1"),
    *("train.tensorboard=false",),
)
TEXT = ("mode=text", "rl.num_minibatches=2", "+text.rewards.chrf=1.0")  # of varying value
ROBOT = (
    "sim.reward.reach=0.5",
    *("sim=reach", "sim.robot=gantry", "sim.num_threads=1", "sft.head_steps=2"),
    *("sft.num_steps=2", "data.num_demonstrations=2", "data.num_question_scenes=8"),
    *("evaluation.num_starts=4", "evaluation.num_videos=0"),
)


def install(site: Path, entry_points: str) -> dict[str, str]:
    """The environment of a process that has the package on its import path."""
    info = site / "spo-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(SOURCE / "spo.py", site)
    shutil.copytree(SOURCE / "configs", site / "spo_configs")
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(entry_points)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}


def train(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train_vla.py"), *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_an_algorithm_takes_one_file_and_one_yaml():
    files = [path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.*")]
    assert sorted(name for name in files if "pycache" not in name) == [
        "configs/algorithm/spo.yaml",
        "spo.py",
    ]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", [TEXT, ROBOT], ids=["text", "robot"])
def test_the_smoke_preset_trains_it(mode, tmp_path):
    """With a KL in its loss, held to the policy that sampled (`rl.reference=rollout`)."""
    environment = install(tmp_path / "site", ALGORITHM + OPTIONS)
    ran = train(environment, *SMALL, *mode, f"run_dir={tmp_path / 'run'}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["stage"] == "rl"]
    assert any(row.get("kl_reference", 0) > 0 for row in rows), rows
    assert "name: spo" in (tmp_path / "run" / "config.yaml").read_text()


def test_its_settings_are_checked_before_torch_loads(tmp_path):
    environment = install(tmp_path / "site", ALGORITHM + OPTIONS)
    code = (
        "import sys; from vla.config import ConfigError, load\n"
        "for setting in ('algorithm.epsilon=0', 'algorithm.epsilo=1', 'algorithm=sppo'):\n"
        "    try: load(['algorithm=spo', setting])\n"
        "    except ConfigError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert printed[0] == "algorithm.epsilon (0) must be greater than 0"
    assert printed[1].startswith(
        "algorithm.epsilo=1: no such setting; did you mean algorithm.epsilon?"
    )
    assert printed[2].startswith("algorithm=sppo: no such option; did you mean spo?")
    assert printed[3] == "False"


def test_its_yaml_is_found_in_a_folder_too(tmp_path):
    environment = install(tmp_path / "site", ALGORITHM)
    shown = ("--cfg", "job", "algorithm=spo")
    without = train(environment, *shown)
    assert (without.returncode, "no such option" in without.stderr) == (2, True)
    folder = ("--config-dir", str(SOURCE / "configs"))
    assert "name: spo" in train(environment, *folder, *shown).stdout
    nowhere = train(environment, "--config-dir", str(tmp_path / "nowhere"), *shown)
    assert (nowhere.returncode, "no such folder" in nowhere.stderr) == (2, True)
    assert "epsilon" in train(environment, *folder, "--help", "algorithm=spo").stdout


def test_what_an_algorithm_leaves_out_is_named(tmp_path):
    environment = install(tmp_path / "site", ALGORITHM + OPTIONS)
    path = tmp_path / "site" / "spo.py"
    path.write_text(path.read_text().replace("    uses_ratio: ClassVar[bool] = True\n", ""))
    ran = train(environment, "--cfg", "job")
    assert ran.returncode == 2
    assert "error: algorithm spo does not declare uses_ratio" in ran.stderr
