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
    """One setting: its dotted name, its type with the range and unit, its value in the run that was
    asked for, and the comment beside it in the YAML."""

    name: str
    type: str
    value: str
    comment: str


def group_help(topic: str, overrides: Sequence[str] = ()) -> str:
    """Every setting of a group, a section in it or a single one, with the values that a run with
    `overrides` has. `topic` may choose an option of the group: `policy=flow`.

    Raises ConfigError where there is no such group.
    """
    group, _, chosen = topic.partition("=")
    group, path = group.split(".")[0], group
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
    found = [s for s in settings(config, group, option) if f"{s.name}.".startswith(f"{path}.")]
    if not found:
        known = [s.name for s in settings(config, group, option)]
        raise ConfigError(f"--help {topic}: no such setting{suggestion(path, known)}")
    lines.append(f"{group}={option}: {summary(group, option)}")
    for setting in found:
        lines += ["", f"{setting.name}={setting.value}"]
        for text in (setting.type, setting.comment):
            lines += wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def default_option(mode: str, group: str) -> str:
    """The option of a group that a mode chooses by itself."""
    entries = option_values("mode", mode)["defaults"]
    return next(entry[f"/{group}"] for entry in entries if f"/{group}" in entry)


def summary(group: str, option: str) -> str:
    """The first line of an option's file: what it is."""
    lines = option_files(group)[option].read_text().splitlines()
    return next(line for line in lines if "@package" not in line).removeprefix("# ")


def settings(config: Any, group: str, option: str) -> Iterator[Setting]:
    """The settings of a group of a run, in the order of its section."""
    section = getattr(config, group)
    schema = type(section).model_json_schema()
    texts = comments(group, option)
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
    """(dotted name, value, its schema) of every setting in a section and the sections in it."""
    for key, of in schema.get("properties", {}).items():
        inner = section_schema(of, values[key], defs)
        if inner is None:
            yield f"{prefix}.{key}", values[key], of
        else:
            yield from leaves(values[key], inner, defs, f"{prefix}.{key}")


def section_schema(of: Schema, value: Any, defs: Schema) -> Schema | None:
    """The schema of the section that a value is; None where it is no section."""
    if not isinstance(value, Mapping):
        return None
    candidates = [of, *of.get("oneOf", ()), *of.get("anyOf", ())]
    found = [defs[c["$ref"].rsplit("/", 1)[-1]] for c in candidates if "$ref" in c]
    return next((s for s in found if set(s["properties"]) == set(value)), None)


def type_text(of: Schema, defs: Schema) -> str:
    """A schema in words: `integer, 1 to 100`, `a | b`, `list of names`."""
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
    """The range of a number. Behind a validator of ours pydantic writes `ge` for `minimum`."""
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
    """{dotted name: the comment beside it} in the file of an option and those that it builds on."""
    path = option_files(group)[option]
    found: dict[str, str] = {}
    for entry in read_yaml(path).get("defaults", []):
        if isinstance(entry, str) and entry in options(group):
            found |= comments(group, entry)
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
            found[own] = parts["comment"].strip()
    return found
