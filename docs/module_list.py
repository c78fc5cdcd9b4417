"""The list of modules and settings files, each with the first sentence of its description."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE_FOLDERS = ("vla", "sim", "scripts")
SENTENCE = re.compile(r".+?(?<!\bal)(?<!\beq)(?<!\bDr)[.?](?=\s|$)")
"""Up to a full stop or question mark that ends no abbreviation ("et al.", "eq.", "Dr.")."""


def first_sentence(path: Path) -> str | None:
    """The first sentence of a module's docstring, or None where there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    if docstring is None:
        return None
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = SENTENCE.match(paragraph)
    return sentence.group() if sentence else None


def source_files(root: Path = ROOT) -> list[Path]:
    """The Python files of the source, relative to the repository, in the order of a tree."""
    files = [path for folder in SOURCE_FOLDERS for path in (root / folder).rglob("*.py")]
    return sorted(path.relative_to(root) for path in files)


def module_list(root: Path = ROOT) -> str:
    """A page with a table for each folder: one line for each module."""
    lines = ["# Modules", "", "Every module with the first sentence of its docstring.", ""]
    folder = None
    for path in source_files(root):
        if path.parent != folder:
            folder = path.parent
            lines += [f"## {folder}/", ""]
            package = root / folder / "__init__.py"
            lines += [first_sentence(package) or "" if package.exists() else "", ""]
            lines += ["| module | what it is |", "|---|---|"]
        if path.name != "__init__.py":
            sentence = (first_sentence(root / path) or "").replace("|", "\\|")
            lines.append(f"| `{path}` | {sentence} |")
    lines += ["## configs/", "", "| settings file | what it sets |", "|---|---|"]
    for path in sorted((root / "configs").rglob("*.yaml")):
        lines.append(f"| `{path.relative_to(root)}` | {first_comment(path)} |")
    return "\n".join(lines) + "\n"


def first_comment(path: Path) -> str:
    """The first comment of a YAML file that is no directive to Hydra, or an empty string."""
    for line in path.read_text().splitlines():
        if not line.startswith("# @package"):
            return line.removeprefix("#").strip().replace("|", "\\|") if line[:1] == "#" else ""
    return ""
