"""Reference of the settings: type and range from the sections, default and comment from the YAML.

`--help GROUP` prints it, and the documentation's page of settings is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from vla.config import ConfigError, load
from vla.config.compose import mode_groups, option_values, split_overrides
from vla.config.explain import format_setting
from vla.config.search_path import groups, option_files, options
from vla.files.reading import read_yaml
from vla.spelling import suggestion

Schema = Mapping[str, Any]
LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w-]+):(?P<value>[^#]*)(?:# *(?P<comment>.*))?$")
UNITS = {"_seconds": "seconds", "_hz": "Hz", "_pixels": "pixels"}
WIDTH = 100


@dataclass(frozen=True)
class Setting:
    """One setting of the reference.

    Attributes:
        name: dotted name.
        type: type with range and unit.
        value: value in the requested run.
        comment: the comment beside it in the YAML.
    """

    name: str
    type: str
    value: str
    comment: str


def group_help(topic: str, overrides: Sequence[str] = ()) -> str:
    """Text of `--help TOPIC`: the settings of a group, a section or a single setting.

    Args:
        topic: dotted name of a group, section or setting; `policy=flow` chooses an option.
        overrides: `key=value` strings; values are those of a run with them.

    Raises:
        ConfigError: there is no such group or setting.
    """
    path, _, chosen = topic.partition("=")
    group = path.split(".")[0]
    if group not in groups():
        raise ConfigError(f"--help {topic}: no such group{suggestion(group, groups())}")
    given = [*overrides, topic] if chosen else list(overrides)
    mode = split_overrides(given).get("mode") or next(
        (mode for mode in ("robot", "text") if group in mode_groups(mode)), None
    )
    lines = []
    if len(options(group)) > 1 and path == group:
        lines = [
            f"{group}=OPTION",
            *(f"  {option:<27} {summary(group, option)}" for option in options(group)),
            "",
        ]
    if mode is None:
        return "\n".join(lines)
    option = split_overrides(given).get(group) or default_option(mode, group)
    config = load([f"mode={mode}", *(one for one in given if not one.startswith("mode="))])
    selected = [s for s in settings(config, group, option) if f"{s.name}.".startswith(f"{path}.")]
    if not selected:
        known = [s.name for s in settings(config, group, option)]
        raise ConfigError(f"--help {topic}: no such setting{suggestion(path, known)}")
    lines.append(f"{group}={option}: {summary(group, option)}")
    for setting in selected:
        lines += ["", f"{setting.name}={setting.value}"]
        for text in (setting.type, setting.comment):
            lines += wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def default_option(mode: str, group: str) -> str:
    """The default option of a group in a mode."""
    entries = option_values("mode", mode)["defaults"]
    return next(entry[f"/{group}"] for entry in entries if f"/{group}" in entry)


def summary(group: str, option: str) -> str:
    """The first comment line of the file of an option."""
    lines = option_files(group)[option].read_text().splitlines()
    return next(line for line in lines if "@package" not in line).removeprefix("# ")


def settings(config: Any, group: str, option: str) -> Iterator[Setting]:
    """Yield the settings of a group, in the order of its section."""
    section = getattr(config, group)
    schema = type(section).model_json_schema()
    mode = {
        name.removeprefix("mode."): text for name, text in comments("mode", config.mode).items()
    }
    texts = mode | comments(group, option)
    for name, value, of in leaves(
        section.model_dump(mode="json"), schema, schema.get("$defs", {}), group
    ):
        unit = next((f", {unit}" for suffix, unit in UNITS.items() if name.endswith(suffix)), "")
        yield Setting(
            name,
            type_text(of, schema.get("$defs", {})) + unit,
            format_setting(value),
            texts.get(name, ""),
        )


def leaves(
    values: Mapping[str, Any], schema: Schema, defs: Schema, prefix: str
) -> Iterator[tuple[str, Any, Schema]]:
    """Yield (dotted name, value, schema) of every setting in a section and its sections."""
    for key, of in schema.get("properties", {}).items():
        inner = section_schema(of, values[key], defs)
        if inner is None:
            yield f"{prefix}.{key}", values[key], of
        else:
            yield from leaves(values[key], inner, defs, f"{prefix}.{key}")


def section_schema(of: Schema, value: Any, defs: Schema) -> Schema | None:
    """The schema of the section that `value` belongs to; None where it is no section."""
    if not isinstance(value, Mapping):
        return None
    candidates = [of, *of.get("oneOf", ()), *of.get("anyOf", ())]
    sections = [defs[c["$ref"].rsplit("/", 1)[-1]] for c in candidates if "$ref" in c]
    return next((s for s in sections if set(s["properties"]) == set(value)), None)


def type_text(of: Schema, defs: Schema) -> str:
    """Describe a schema: `integer, 1 to 100`, `a | b`, `list of: text`."""
    if "$ref" in of:
        section = defs[of["$ref"].rsplit("/", 1)[-1]]["properties"]
        return f"{{{', '.join(f'{key}: {type_text(one, defs)}' for key, one in section.items())}}}"
    for several in ("anyOf", "oneOf"):
        if several in of:
            return " or ".join(dict.fromkeys(type_text(one, defs) for one in of[several]))
    if "const" in of or "enum" in of:
        return " | ".join(map(format_setting, of.get("enum", [of.get("const")])))
    match of.get("type"):
        case "integer" | "number" as kind:
            return kind + bounds(of)
        case "boolean":
            return "true | false"
        case "array":
            return f"list of: {type_text(of.get('items', {}), defs)}"
        case "object" if isinstance(of.get("additionalProperties"), Mapping):
            return f"name: {type_text(of['additionalProperties'], defs)}"
        case "object":
            return "name: value"
        case "null":
            return "null"
    return "text"


def bounds(of: Schema) -> str:
    """Describe the range of a number.

    After a custom validator pydantic writes `ge` in place of `minimum`.
    """
    low = of.get("minimum", of.get("ge"))
    high = of.get("maximum", of.get("le"))
    above = of.get("exclusiveMinimum", of.get("gt"))
    below = of.get("exclusiveMaximum", of.get("lt"))
    step = of.get("multipleOf", of.get("multiple_of"))
    words = {"above": above if low is None else None, "at least": low if high is None else None}
    words |= {"at most": high if low is None else None, "below": below, "a multiple of": step}
    texts = [f"{word} {limit:,}" for word, limit in words.items() if limit is not None]
    if low is not None and high is not None:
        texts.insert(0, f"{low:,} to {high:,}")
    return "".join(f", {text}" for text in texts)


def comments(group: str, option: str) -> dict[str, str]:
    """{dotted name: YAML comment} of an option and of the options it inherits from."""
    path = option_files(group)[option]
    texts: dict[str, str] = {}
    for entry in read_yaml(path).get("defaults", []):
        if isinstance(entry, str) and entry in options(group):
            texts |= comments(group, entry)
    stack: list[tuple[int, str]] = []
    for line in path.read_text().splitlines():
        parts = LINE.match(line)
        if parts is None:
            continue
        indent = len(parts["indent"])
        stack = [(at, key) for at, key in stack if at < indent] + [(indent, parts["key"])]
        if parts["comment"]:
            name = ".".join(key for _, key in stack)
            own = name if name.split(".")[0] == group else f"{group}.{name}"
            texts[own] = parts["comment"].strip()
    return texts
