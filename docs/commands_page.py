"""The reference of commands: the docstring of each command, which `--help` prints too."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
INTRODUCTION = "Each command answers `--help` at once. The text below is that of its module."


def commands_page() -> str:
    """The page in Markdown."""
    lines = ["# Commands", "", INTRODUCTION, ""]
    for path in command_files():
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        lines += [f"## {path.relative_to(ROOT)}", "", "```text", docstring, "```", ""]
    return "\n".join(lines) + "\n"


def command_files() -> list[Path]:
    """The modules of the commands; a script that only starts one of the package is left out."""
    package = sorted((ROOT / "vla" / "commands").glob("[!_]*.py"))
    scripts = [
        path
        for path in sorted((ROOT / "scripts").glob("*.py"))
        if "__main__" in path.read_text() and "vla.commands." not in path.read_text()
    ]
    return [*package, *scripts]
