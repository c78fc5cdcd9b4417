"""A task is named, checked and trained like ours: before anything heavy loads, and from a package."""

import subprocess
import sys

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
