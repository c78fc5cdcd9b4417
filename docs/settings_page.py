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

    schemas = [RobotConfig.model_json_schema(), TextConfig.model_json_schema()]
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
    name = next((s.value for s in settings if s.name == f"{path.parent.name}.name"), None)
    for setting in settings:
        kind = kind_of_setting(setting.name, name, schemas)
        cells = [f"`{setting.name}`", f"`{setting.value}`" if setting.value else "", kind]
        cells.append(setting.meaning)
        lines.append("| " + " | ".join(escape(cell) for cell in cells) + " |")
    return [*lines, ""]


def escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("$", "\\$")


def description(text: str) -> str:
    """The first comment of a file that is not an instruction to Hydra."""
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
    found = [comment for comment in comments if not comment.startswith("@package")]
    return escape(found[0]).rstrip(".") + "." if found else ""


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
    """The kind and range of a setting, from the first schema that knows it."""
    for schema in schemas:
        found = find_property(schema, schema, name.split("."), option)
        if found is not None:
            return kind_text(found, schema)
    return ""


def find_property(
    node: Mapping[str, Any], schema: Mapping[str, Any], names: list[str], option: str | None
) -> Mapping[str, Any] | None:
    """The schema of the setting at `names`, through references and unions."""
    if "$ref" in node:
        return find_property(
            schema["$defs"][node["$ref"].rpartition("/")[2]], schema, names, option
        )
    if not names:
        return node
    choices = node.get("oneOf") or node.get("anyOf")
    if choices:
        mapping = node.get("discriminator", {}).get("mapping", {})
        if option in mapping:
            choices = [{"$ref": mapping[option]}]
        found = (find_property(choice, schema, names, option) for choice in choices)
        return next((each for each in found if each is not None), None)
    properties = node.get("properties", {})
    if names[0] not in properties:
        return None
    return find_property(properties[names[0]], schema, names[1:], option)


def kind_text(node: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """A kind as a reader writes it: `integer, 1 to 100000`, `a | b`, `or null`."""
    if "anyOf" in node:
        kinds = [kind_text(choice, schema) for choice in node["anyOf"]]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind))
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    if node.get("type") == "array":
        inner = kind_text(node.get("items", {}), schema)
        return f"list of {inner}" if inner else "list"
    names = {"string": "text", "boolean": "true or false", "object": "mapping"}
    kind = names.get(node.get("type", ""), node.get("type", ""))
    return ", ".join(part for part in (kind, range_text(node)) if part)


def range_text(node: Mapping[str, Any]) -> str:
    """The range of a number."""
    low = node.get("minimum", node.get("ge"))
    high = node.get("maximum", node.get("le"))
    below = node.get("exclusiveMaximum", node.get("lt"))
    above = node.get("exclusiveMinimum", node.get("gt"))
    lower = f"from {low:g}" if low is not None else f"above {above:g}" if above is not None else ""
    upper = f"to {high:g}" if high is not None else f"below {below:g}" if below is not None else ""
    return " ".join(part for part in (lower, upper) if part)
