"""The documentation builds without a warning, its generated pages among it, and can be searched."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(1200)
def test_the_documentation_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    folders = [str(ROOT / "docs"), str(tmp_path / "html"), "-d", str(tmp_path / "doctrees")]
    built = subprocess.run([*command, *folders], capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    settings = (tmp_path / "html" / "reference" / "settings.html").read_text()
    assert "rl.num_iterations" in settings
    assert "vla/rl/losses.py" in (tmp_path / "html" / "reference" / "modules.html").read_text()
    assert "pick_plac" in (tmp_path / "html" / "searchindex.js").read_text()
