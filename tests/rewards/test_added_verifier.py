"""A package of users adds a verifier by one Python file, and a reward names it by one setting."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "packages" / "even_length"
METADATA = "Metadata-Version: 2.1\nName: even_length\nVersion: 1.0\n"
VERIFIER = "[vla.verifiers]\neven_length = even_length:even_length\n"
TEXT = ("mode=text", "language_model=tiny", "preset=smoke")
SMALL = ("train.num_threads=1", "train.tensorboard=false", "rl.num_minibatches=2")


def install(site: Path, entry_points: str = VERIFIER) -> dict[str, str]:
    """The environment of a process that has the package on its import path."""
    info = site / "even_length-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(SOURCE / "even_length.py", site)
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(entry_points)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}


def train(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train_vla.py"), *TEXT, *SMALL, *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def run_python(environment: dict[str, str], code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_a_verifier_takes_one_file():
    files = [path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.*")]
    assert [name for name in files if "pycache" not in name] == ["even_length.py"]


@pytest.mark.timeout(1200)
def test_the_smoke_preset_trains_it(tmp_path):
    ran = train(
        install(tmp_path / "site"),
        "++text.rewards={even_length: 1.0}",
        f"run_dir={tmp_path / 'run'}",
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["stage"] == "rl"]
    assert any(0 < row["return_mean"] < 1 for row in rows), rows
    assert "even_length: 1.0" in (tmp_path / "run" / "config.yaml").read_text()


def test_its_name_is_checked_before_torch_loads(tmp_path):
    code = (
        "import sys; from vla.config import ConfigError, load\n"
        "load(['mode=text', '++text.rewards={answer.even_length: 1.0}'])\n"
        "try: load(['mode=text', '++text.rewards={even_lenth: 1.0}'])\n"
        "except ConfigError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    printed = run_python(install(tmp_path / "site"), code).splitlines()
    assert "verifier 'even_lenth' is unknown; did you mean even_length?" in printed[0]
    assert printed[1] == "False"


def test_the_verifier_process_finds_it(tmp_path):
    code = (
        "from vla.rewards.sample import Sample\n"
        "from vla.rewards.verifier_process import VerifierProcess\n"
        "samples = [Sample('', text, '') for text in ('ab', 'abc')]\n"
        "with VerifierProcess() as process:\n"
        "    for name in ('even_length', 'even_length:even_length', 'even_length.even_length'):\n"
        "        print(process.score(name, samples))"
    )
    printed = run_python(install(tmp_path / "site"), code)
    assert printed.splitlines() == ["[1.0, 0.0]"] * 3


def test_a_name_of_ours_is_refused(tmp_path):
    taken = "[vla.verifiers]\nexact = even_length:even_length\n"
    ran = train(install(tmp_path / "site", taken), "--cfg", "job")
    assert ran.returncode == 2
    assert "vla.verifiers: 'exact' of package even_length is taken by vla" in ran.stderr
