"""Messages of validation errors: setting as on the command line, its value, and the fault."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from vla.config.renamed import new_name
from vla.spelling import suggestion


def explain(error: ValidationError, values: Any) -> str:
    """One line for every wrong setting in `values`."""
    problems = error.errors(include_url=False)
    moved = {new_name(setting_name(p, values)) for p in problems if p["type"] == "extra_forbidden"}
    return "\n".join(
        problem_line(problem, values)
        for problem in problems
        if problem["type"] != "missing" or setting_name(problem, values) not in moved
    )


def setting_name(problem: Mapping[str, Any], values: Any) -> str:
    """Dotted name of the wrong setting."""
    return ".".join(locate_key(problem["loc"][1:], values, problem["type"] == "missing")[0])


def problem_line(problem: Mapping[str, Any], values: Any) -> str:
    """The message of one problem that pydantic reports."""
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
        tag = problem["ctx"]["tag"]
        known = problem["ctx"]["expected_tags"].replace("'", "").split(", ")
        by = problem["ctx"]["discriminator"].strip("'")
        return f"{'.'.join([*path, by])} ({tag}): no such kind{suggestion(tag, known)}"
    if problem["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        value = problem["input"]
        hint = suggestion(str(value), choices)
        return f"{name} ({format_setting(value)}): no such choice{hint}"
    if problem["type"] == "simulator":
        return str(problem["msg"])
    return f"{name or 'the settings'} ({format_setting(problem['input'])}) {explain_fault(problem)}"


def explain_fault(problem: Mapping[str, Any]) -> str:
    """The fault in plain words, in place of pydantic's words about Python types."""
    match problem["type"]:
        case "string_pattern_mismatch":
            return "must not be empty: give a name, or null where the setting is optional"
        case "too_long" | "too_short":
            bound = "at most" if problem["type"] == "too_long" else "at least"
            context = problem["ctx"]
            length = context.get("max_length", context.get("min_length"))
            return f"must have {bound} {length} entries"
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
    """Path of keys in `values` for a location of pydantic, and the mapping that holds the last key.

    Pydantic adds names for members of a union, which are left out. The last key may be missing
    (`is_missing`). `location` begins after the mode.
    """
    path: list[str] = []
    parent = values
    for i, part in enumerate(location):
        last = i == len(location) - 1
        inside = part in values if isinstance(values, Mapping) else isinstance(part, int)
        if not inside and not (last and is_missing):
            continue
        path.append(str(part))
        parent = values
        is_scalar = isinstance(values, str | int | float | None)
        values = values[part] if inside and not is_scalar else None
    return path, parent


def format_setting(value: Any) -> str:
    """Write a value as on the command line."""
    if isinstance(value, tuple | list):
        return f"[{','.join(map(format_setting, value))}]"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
