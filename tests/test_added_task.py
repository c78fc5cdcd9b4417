"""A task is named, checked and trained like ours: before anything heavy loads, and from a
package."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vla.runtime
from tests.test_pipeline import TINY
from vla.commands.train import main
from vla.config import search_path

SOURCE = Path(__file__).parent / "packages" / "hold_over"
PROGRAM = """
import sys
from vla.commands.train import main
try:
    main(sys.argv[1:])
finally:
    print("loaded:", [name for name in ("torch", "mujoco") if name in sys.modules])
"""


def test_an_unknown_task_is_refused_before_torch_loads_and_a_folder_exists(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, "sim.task=[reahc]", f"run_dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sim.task='reahc' is unknown; did you mean 'reach'?" in done.stderr
    assert done.stdout == "loaded: []\n"
    assert not folder.exists()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package `hold_over`, installed into an empty folder on the import path."""
    shutil.copytree(SOURCE, tmp_path / "site")
    info = tmp_path / "site" / "hold_over-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hold_over\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vla.tasks]\nhold_over = hold_over:HoldOver\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(search_path, "ADDED", [])  # --config-dir holds for the whole process
    monkeypatch.setattr(vla.runtime, "prepare", lambda num_threads, offline: None)


def test_a_task_of_a_package_trains_by_the_smoke_preset(package, tmp_path):
    folder = tmp_path / "run"
    configs = ["--config-dir", str(SOURCE / "configs"), "sim=hold_over"]
    assert main([*configs, *TINY, f"run_dir={folder}"]) == 0
    assert "hold_over" in (folder / "config.yaml").read_text()
    assert '"reached_over"' in (folder / "metrics.jsonl").read_text()
