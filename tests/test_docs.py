"""The documentation: it builds without a warning, its notebooks run, its glossary is complete."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vla.config.renamed import RENAMED

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[1])
"""


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
    assert (tmp_path / "html" / "notebooks" / "robot.html").exists()


def settings_page() -> str:
    code = "from settings_page import settings_page; print(settings_page())"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT / "docs", capture_output=True, text=True).stdout


def test_the_settings_page_has_the_kind_of_both_modes_and_of_every_simulator():
    lines = settings_page().splitlines()
    assert "| `mode` | `text` | robot or text |  |" in lines
    assert any(line.startswith("| `sim.id` | `Reacher-v5` | text |") for line in lines)
    baseline = [line for line in lines if line.startswith("| `algorithm.baseline` | `group`")]
    assert [line.split(" | ")[2] for line in baseline] == [r"none \| group"]


def test_no_page_has_the_old_name_of_a_setting():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("[!_]*/*.md")]
    old = {
        f"{page.relative_to(ROOT)}: {name}"
        for page in pages
        for name in RENAMED
        if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", page.read_text())
    }
    assert old == set()


@pytest.fixture(scope="module", params=["robot", "text"])
def notebook(request, tmp_path_factory) -> Path:
    """An executed notebook in a folder of its own, with the run that it made."""
    folder = tmp_path_factory.mktemp("notebook")
    path = folder / f"{request.param}.ipynb"
    shutil.copy(NOTEBOOKS / path.name, path)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "GOMP_SPINCOUNT": "0",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    command = [sys.executable, "-c", EXECUTE, str(path)]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return path


@pytest.mark.timeout(1200)
def test_the_notebooks_run(notebook):
    """Every code cell ends without an error, and pictures are drawn."""
    cells = json.loads(notebook.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    assert [output for output in outputs if output["output_type"] == "error"] == []
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == (2 if notebook.stem == "robot" else 1)


def glossary() -> re.Pattern[str]:
    """The names of docs/reference/metrics.md; capital letters stand for any name."""
    lines = (ROOT / "docs" / "reference" / "metrics.md").read_text().splitlines()
    cells = [line.split("|")[1] for line in lines if line.startswith("| `")]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    return re.compile("|".join(re.sub(r"[A-Z]+", r"[\\w.]+", name) for name in names))


@pytest.mark.timeout(1200)
def test_the_glossary_explains_every_metric(notebook):
    """The names in the metrics.jsonl of the runs that the notebooks make."""
    files = list(notebook.parent.glob("runs/*/metrics.jsonl"))
    assert len(files) == 1
    records = [json.loads(line) for line in files[0].read_text().splitlines()]
    names = {name for record in records for name in record}
    explained = glossary()
    assert sorted(name for name in names if not explained.fullmatch(name)) == []
