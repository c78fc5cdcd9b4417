"""The reference of settings: every YAML file under configs/ with its values, their meaning, and the
kind and range that the settings' types state."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w./-]+):(?P<rest>.*)$")
COMMENT = re.compile(r"(^|\s)#\s?(?P<text>.*)$")
GROUPS_FIRST = ("mode", "sim", "model", "policy", "algorithm", "data", "sft", "rl", "recap")


@dataclass(frozen=True)
class Setting:
    """A line of a YAML file: dotted name, value as written, and its comment."""

    name: str
    value: str
    meaning: str


def settings_page() -> str:
    """The page in Markdown."""
    sys.path.insert(0, str(ROOT))
    from vla.config import RobotConfig, TextConfig
    from vla.config.simulation import section_of_simulator, simulators

    schemas = [RobotConfig.model_json_schema(), TextConfig.model_json_schema()]
    for name in simulators():
        section = section_of_simulator(name).model_json_schema()
        schemas.append({"properties": {"sim": section}, "$defs": section.get("$defs", {})})
    lines = [
        "# Settings",
        "",
        "Generated from the comments of `configs/` and the types of `vla/config/`. "
        "A group is chosen by `group=option`, a setting by `section.name=value`. "
        "`python scripts/train_vla.py --cfg job` prints the settings of a run with their values. "
        "The [rules](setting-rules.md) say which settings go together.",
        "",
    ]
    for folder in group_folders():
        lines += [f"## {folder.name}", ""]
        for path in sorted(folder.glob("*.yaml")):
            lines += option_lines(path, schemas)
    return "\n".join(lines) + "\n"


def group_folders() -> list[Path]:
    """The groups, the ones that a first run meets first."""
    folders = [path for path in configs_folder().iterdir() if path.is_dir()]
    order = {name: i for i, name in enumerate(GROUPS_FIRST)}
    return sorted(folders, key=lambda path: (order.get(path.name, len(order)), path.name))


def configs_folder() -> Path:
    """Where the YAML files are: in the checkout, or in the package."""
    inside = ROOT / "vla" / "configs"
    return inside if inside.exists() else ROOT / "configs"


def option_lines(path: Path, schemas: list[dict[str, Any]]) -> list[str]:
    """The part of the page about one option of a group."""
    text = path.read_text()
    lines = [f"### {path.parent.name}={path.stem}", "", description(text), ""]
    settings = list(read_settings(text, path.parent.name))
    if settings:
        lines += ["| setting | value | kind | meaning |", "|---|---|---|---|"]
    name = kind_name(path)
    for setting in settings:
        kind = kind_of_setting(setting.name, name, schemas)
        cells = [f"`{setting.name}`", f"`{setting.value}`" if setting.value else "", kind]
        cells.append(setting.meaning)
        lines.append("| " + " | ".join(escape(cell) for cell in cells) + " |")
    return [*lines, ""]


def kind_name(path: Path) -> str | None:
    """The setting `name` of an option, its own or that of the option that it extends."""
    text = path.read_text()
    group = path.parent.name
    own = [one.value for one in read_settings(text, group) if one.name == f"{group}.name"]
    parents = re.findall(r"^  - ([\w-]+)$", text, re.MULTILINE)
    files = [path.with_stem(parent) for parent in parents if parent != "_self_"]
    inherited = [kind_name(file) for file in files if file.exists()]
    return next(iter([*own, *inherited]), None)


def escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("$", "\\$")


def description(text: str) -> str:
    """The first comment of a file that is not an instruction to Hydra."""
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
    texts = [comment for comment in comments if not comment.startswith("@package")]
    return escape(texts[0]).rstrip(".") + "." if texts else ""


def read_settings(text: str, group: str) -> Iterator[Setting]:
    """The settings of a YAML file in the order of its lines."""
    everywhere = "@package _global_" in text
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = KEY.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        above = [(depth, key) for depth, key in above if depth < indent]
        names = [key for _, key in above] + [match["key"]]
        above.append((indent, match["key"]))
        comment = COMMENT.search(match["rest"])
        value = COMMENT.sub("", match["rest"]).strip()
        if names[0] == "defaults" or (not value and comment is None):
            continue
        # The options of presets are dotted names of settings already.
        prefix = [] if everywhere or group == "preset" else [group]
        yield Setting(".".join(prefix + names), value, comment["text"] if comment else "")


def kind_of_setting(name: str, option: str | None, schemas: list[dict[str, Any]]) -> str:
    """The kind and range of a setting, as `--help` prints it; all kinds where it has several."""
    from vla.config.reference import type_text

    kinds = [
        type_text(node, schema["$defs"])
        for schema in schemas
        for node in find_properties(schema, schema, name.split("."), option)
    ]
    return " or ".join(dict.fromkeys(kinds))


def find_properties(
    node: Mapping[str, Any], schema: Mapping[str, Any], names: list[str], option: str | None
) -> Iterator[Mapping[str, Any]]:
    """The schemas of the setting at `names`, through references and unions."""
    if "$ref" in node:
        target = schema["$defs"][node["$ref"].rpartition("/")[2]]
        yield from find_properties(target, schema, names, option)
    elif not names:
        yield node
    elif choices := node.get("oneOf") or node.get("anyOf"):
        mapping = node.get("discriminator", {}).get("mapping", {})
        chosen = [{"$ref": mapping[option]}] if option in mapping else choices
        for choice in chosen:
            yield from find_properties(choice, schema, names, option)
    elif names[0] in node.get("properties", {}):
        yield from find_properties(node["properties"][names[0]], schema, names[1:], option)
