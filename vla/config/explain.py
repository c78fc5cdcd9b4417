"""A validation error as a person reads it: the setting as the command line writes it, its value,
what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from vla.config.renamed import new_name
from vla.spelling import suggestion


def explain(error: ValidationError, values: Any) -> str:
    """A line for each thing that is wrong with `values`."""
    problems = error.errors(include_url=False)
    moved = {new_name(setting_name(p, values)) for p in problems if p["type"] == "extra_forbidden"}
    return "\n".join(
        problem_line(problem, values)
        for problem in problems
        if problem["type"] != "missing" or setting_name(problem, values) not in moved
    )


def setting_name(problem: Mapping[str, Any], values: Any) -> str:
    """The dotted name of the setting at fault."""
    return ".".join(locate_key(problem["loc"][1:], values, problem["type"] == "missing")[0])


def problem_line(problem: Mapping[str, Any], values: Any) -> str:
    path, parent = locate_key(problem["loc"][1:], values, problem["type"] == "missing")
    name = ".".join(path)
    kind = (
        f" under {'.'.join(path[:-1])}={parent['name']}"
        if isinstance(parent, Mapping) and "name" in parent
        else ""
    )
    if problem["type"] == "extra_forbidden":
        new = new_name(name)
        if new is not None:
            return f"{name} ({format_setting(problem['input'])}): this setting is now called {new}"
        return f"{name} ({problem['input']}): no such setting{kind}"
    if problem["type"] == "missing":
        return f"{name} is missing{kind}: every setting needs a value"
    if problem["type"] == "union_tag_invalid":
        tag, known = (
            problem["ctx"]["tag"],
            problem["ctx"]["expected_tags"].replace("'", "").split(", "),
        )
        by = problem["ctx"]["discriminator"].strip("'")
        return f"{'.'.join([*path, by])} ({tag}): no such kind{suggestion(tag, known)}"
    if problem["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        return f"{name} ({format_setting(problem['input'])}): no such choice{suggestion(str(problem['input']), choices)}"
    if problem["type"] == "simulator":
        return str(problem["msg"])
    return f"{name or 'the settings'} ({format_setting(problem['input'])}) {explain_fault(problem)}"


def explain_fault(problem: Mapping[str, Any]) -> str:
    """What is wrong, in our words where the library's are about its own types."""
    match problem["type"]:
        case "string_pattern_mismatch":
            return "must not be empty: give it a name, or null where it may be left out"
        case "too_long" | "too_short":
            bound = "at most" if problem["type"] == "too_long" else "at least"
            return f"must have {bound} {problem['ctx'].get('max_length', problem['ctx'].get('min_length'))} entries"
        case "model_type" | "dict_type" | "model_attributes_type" | "union_tag_not_found":
            return "must be a section with settings of its own, name: value"
        case "tuple_type":
            return "must be a list, e.g. [a, b]"
        case "string_type":
            return "must be a name"
    return problem["msg"].replace("Input should be", "must be").replace("Value error, ", "")


def locate_key(
    location: Sequence[str | int], values: Any, is_missing: bool
) -> tuple[list[str], Any]:
    """The path of keys that stand in `values`, without the names that pydantic adds for members of
    a union; the last one is not there where it `is_missing`. `location` begins behind the mode.
    """
    path, parent = [], values
    for i, part in enumerate(location):
        last = i == len(location) - 1
        inside = part in values if isinstance(values, Mapping) else isinstance(part, int)
        if not inside and not (last and is_missing):
            continue
        path.append(str(part))
        parent, values = (
            values,
            values[part] if inside and not isinstance(values, str | int | float | None) else None,
        )
    return path, parent


def format_setting(value: Any) -> str:
    """A value as it is written in the settings."""
    if isinstance(value, tuple | list):
        return f"[{','.join(map(format_setting, value))}]"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
