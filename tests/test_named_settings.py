"""Every setting that a message names exists, so that a remedy can be followed."""

import ast
import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from vla.config.declarations import OneOf
from vla.config.robot import RobotConfig
from vla.config.simulation import section_of_simulator, simulators
from vla.config.text import TextConfig

ROOT = Path(__file__).parents[1]
FILE_ENDINGS = {
    "json",
    "jsonl",
    "yaml",
    "py",
    "safetensors",
    "html",
    "parquet",
    "md",
    "css",
    "js",
    "model",
}


def sections(kind: Any) -> list[type[BaseModel]]:
    """The sections that a field's type allows, whatever it is wrapped in."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    if get_origin(kind) in (Union, UnionType, Annotated):
        return [section for part in get_args(kind) for section in sections(part)]
    return []


def settings_of(kind: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in kind.model_fields.items():
        path = f"{prefix}{name}"
        found |= {path}
        declared = [
            kind for part in field.metadata if isinstance(part, OneOf) for kind in part.sections
        ]
        for section in [*sections(field.annotation), *declared]:
            found |= settings_of(section, f"{path}.")
    return found


KNOWN = settings_of(RobotConfig) | settings_of(TextConfig)
KNOWN |= {path for name in simulators() for path in settings_of(section_of_simulator(name), "sim.")}
GROUPS = sorted({path.split(".")[0] for path in KNOWN if "." in path})
NAMED = re.compile(rf"(?<![\w./-])({'|'.join(GROUPS)})((?:\.[a-z_]+)+)")
FREE = {"sim.make", "sim.randomization", "sim.reward"}
"""Mappings whose keys the types do not list."""
LEROBOT = {"policy.type"}


def named_in(path: Path) -> list[tuple[str, str]]:
    """(setting, line) of every message: strings that are neither docstrings nor names of files."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    choices = {
        id(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check_choice"
    }
    found = []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
        ):
            if id(node) not in choices and " " not in node.value.strip():  # keys, modules, weights
                continue
            for match in NAMED.finditer(node.value):
                if match[2].rsplit(".", 1)[-1] not in FILE_ENDINGS:
                    found.append((match[0], f"{path.name}:{node.lineno}"))
    return found


def exists(setting: str) -> bool:
    return setting in KNOWN | LEROBOT or any(setting.startswith(f"{free}.") for free in FREE)


def test_settings_that_messages_name_exist():
    sources = [
        path
        for package in ("vla", "sim", "scripts")
        for path in sorted((ROOT / package).rglob("*.py"))
    ]
    wrong = [
        f"{where}: {setting}"
        for path in sources
        for setting, where in named_in(path)
        if not exists(setting)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("set data.holdout to less", ["data.holdout"]),
        ("sim.reward.reach is a weight, rl.epochs=2", ["sim.reward.reach", "rl.epochs"]),
        ("policy.json is damaged, see sim/model.py", []),
    ],
)
def test_what_counts_as_a_name(tmp_path, text, found):
    (tmp_path / "message.py").write_text(f"raise ValueError({text!r})")
    assert [setting for setting, _ in named_in(tmp_path / "message.py")] == found
    assert exists("sim.reward.reach")
    assert not exists("data.holdout")
