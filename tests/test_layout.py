"""The tree keeps its shape: DESIGN sections 3 to 5, checked on the files git tracks or would
track."""

import ast
import re
import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {
    *("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile"),
    *(".ci", ".gitignore", ".python-version"),
    *("configs", "datasets", "docs", "scripts", "sim", "tests", "vla"),
}
MAX_FILE_LINES = 500
"""A soft size: a longer file is asked to split. Complexity is limited by ruff (C901, PLR09)."""
MAX_SCRIPT_LINES = 120
VAGUE_NAMES = {"utils", "util", "common", "base", "helpers", "helper", "manager", "misc"}
LIGHT_IMPORTS = {
    "__future__",
    "argparse",
    "collections",
    "dataclasses",
    "json",
    "os",
    "pathlib",
    "sys",
    "time",
    "typing",
}
FLOORS = ("vla", "sim")
UNFINISHED = re.compile(r"NotImplementedError|TODO|FIXME|XXX")
# Each word holds an empty group, so that this file does not match itself.
REGISTRY_HOST = re.compile(
    r"py(?:)pi\.org|python(?:)hosted\.org|npm(?:)js\.(com|org)|/sim(?:)ple/?\""
)
MACHINE_PATH = re.compile(r"/wo(?:)rk/|/ro(?:)ot/|/ho(?:)me/\w+/")


def repository_files() -> list[Path]:
    """Every file that is tracked, or that git would add, and that still exists."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return sorted({Path(name) for name in listed if (ROOT / name).is_file()})


FILES = repository_files()
PYTHON = [path for path in FILES if path.suffix == ".py"]
SOURCE = [path for path in PYTHON if path.parts[0] in ("vla", "sim", "scripts")]
SCRIPTS = [path for path in SOURCE if path.parts[0] == "scripts"]


def num_lines(path: Path) -> int:
    return len((ROOT / path).read_text().splitlines())


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in FILES:
        try:
            found.append((path, (ROOT / path).read_text()))
        except UnicodeDecodeError:
            continue
    return found


def test_the_top_level_is_the_fixed_set():
    assert {path.parts[0] for path in FILES} <= TOP_LEVEL


def test_datasets_hold_no_python():
    assert [
        path for path in FILES if path.parts[0] == "datasets" and path.suffix in (".py", ".pyi")
    ] == []


def test_files_stay_short():
    too_long = {str(path): num_lines(path) for path in PYTHON if num_lines(path) > MAX_FILE_LINES}
    too_long |= {
        str(path): num_lines(path) for path in COMMANDS if num_lines(path) >= MAX_SCRIPT_LINES
    }
    assert too_long == {}


def test_no_module_has_a_vague_name():
    assert [path for path in SOURCE if VAGUE_NAMES & {path.stem, *path.parts[:-1]}] == []


def test_nothing_is_left_unfinished():
    assert [path for path in SOURCE if UNFINISHED.search((ROOT / path).read_text())] == []


def test_no_registry_host_and_no_machine_path():
    found = [
        f"{path}:{i}"
        for path, text in texts()
        for i, line in enumerate(text.splitlines(), 1)
        if is_local(line)
    ]
    assert found == []


def is_local(line: str) -> bool:
    return bool(REGISTRY_HOST.search(line) or MACHINE_PATH.search(line))


READERS = re.compile(
    r"json\.loads?\([^\n]*(read_text|read_bytes|open)\(|yaml\.(safe_)?load\([^\n]*read_text\(|yaml\.load\(|\bload_file\("
    r"|\bload_model\(|safe_open\(|pq\.read_(table|schema)\(|Tokenizer\w*\.from_pretrained\(|allow_pickle|torch\.load\("
)
"""What reads a file without saying in one line what is wrong with it."""
MAY_READ = ("vla/files/", "vla/text/smollm2_download.py", "scripts/benchmarks/")
"""The readers themselves, a package that is checked by its checksum, and measurements."""


def test_files_are_read_by_the_readers_of_vla_files():
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in SOURCE
        if path.parts[0] != "sim" and not str(path).startswith(MAY_READ)
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if READERS.search(line)
    ]
    assert found == []


def load_module_list() -> ModuleType:
    """docs/module_list.py, which generates the documentation's page of modules."""
    spec = spec_from_file_location("module_list", ROOT / "docs" / "module_list.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULE_LIST = load_module_list()


def test_every_module_says_in_one_sentence_what_it_is():
    """The documentation's list of modules is made from these sentences."""
    silent = [
        str(path)
        for path in SOURCE
        if (ROOT / path).read_text().strip() and MODULE_LIST.first_sentence(ROOT / path) is None
    ]
    assert silent == [], "the docstring of a module opens with a sentence"


def test_the_module_list_names_every_module_by_its_path():
    page = MODULE_LIST.module_list()
    modules = [path for path in SOURCE if path.name != "__init__.py"]
    assert [str(path) for path in modules if f"| `{path}` |" not in page] == []


def folder_map() -> set[str]:
    """The folders of the README's map as paths; an indented line lists folders of the last one."""
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## Folders") :].split("\n## ")[0]
    paths: set[str] = set()
    parent = ""
    for line in re.findall(r"^    .*", section, re.MULTILINE):
        names = re.findall(r"\b([\w-]+)/(?=\s|$)", re.split(r"\s{3,}", line.strip())[0])
        if line.startswith("      "):
            paths |= {f"{parent}/{name}" for name in names}
        else:
            parent = names[0]
            paths |= set(names)
    return paths


def test_the_readme_names_every_folder_of_the_source():
    folders = {"/".join(path.parts[:2]) for path in SOURCE if len(path.parts) > 2}
    missing = {name for name in folders if name.split("/")[0] in FLOORS} - folder_map()
    assert missing == set()


def test_the_readme_names_no_folder_that_does_not_exist():
    folders = {str(parent) for path in FILES for parent in path.parents}
    assert folder_map() - folders == set()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)")


GENERATED_PAGES = {f"docs/reference/{name}.md" for name in ("commands", "modules", "settings")}
"""Pages that docs/conf.py writes when the documentation is built."""


def resolves(page: Path, link: str) -> bool:
    target = (ROOT / page.parent / link).resolve()
    return target.exists() or str(target.relative_to(ROOT)) in GENERATED_PAGES


def relative_links() -> list[tuple[Path, str]]:
    """The relative links of the Markdown files, anchors cut off."""
    pages = [path for path in FILES if path.suffix == ".md"]
    links = [(page, link) for page in pages for link in LINK.findall((ROOT / page).read_text())]
    return [(page, link.split("#")[0]) for page, link in links if "://" not in link]


def test_every_relative_link_of_the_documentation_resolves():
    broken = [
        f"{page}: {link}" for page, link in relative_links() if link and not resolves(page, link)
    ]
    assert broken == []


COMMANDS = [path for path in SCRIPTS if "__main__" in (ROOT / path).read_text()]
COMMANDS += [
    path
    for path in SOURCE
    if path.parts[:2] == ("vla", "commands") and "\ndef main(" in (ROOT / path).read_text()
]
LIGHT_MODULES = {"vla.runtime", "vla.cli", "vla.command_names"}
LIGHT_MODULES |= {
    ".".join(path.with_suffix("").parts) for path in SOURCE if path.parts[:2] == ("vla", "commands")
}


@pytest.mark.parametrize("path", COMMANDS, ids=str)
def test_scripts_answer_before_they_load_anything_heavy(path: Path):
    """`--help` must answer at once: a script's first lines load only the standard library and two
    light modules."""
    allowed = LIGHT_IMPORTS | LIGHT_MODULES
    imported: set[str] = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "vla":
            imported |= {f"vla.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    heavy = {
        name for name in imported if name not in allowed and name.split(".")[0] not in LIGHT_IMPORTS
    }
    assert heavy == set()


def test_the_import_rules_hold():
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    assert (
        lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
        == EXIT_STATUS_SUCCESS
    )
