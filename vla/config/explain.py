"""A validation error as a person reads it: the setting as the command line writes it, its value, what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from vla.config.compose import suggestion


def explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    """A line for each thing that is wrong with `values`."""
    return "\n".join(line(problem, values) for problem in error.errors(include_url=False))


def line(problem: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    path, parent = locate(problem["loc"], values)
    name = ".".join(path)
    kind = f" under {'.'.join(path[:-1])}={parent['name']}" if isinstance(parent, Mapping) and "name" in parent else ""
    if problem["type"] == "extra_forbidden":
        return f"{name} ({problem['input']}): no such setting{kind}"
    if problem["type"] == "missing":
        return f"{name} is missing{kind}: every setting needs a value"
    if problem["type"] == "union_tag_invalid":
        tag, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{name}.name ({tag}): no such kind{suggestion(tag, known)}"
    if problem["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        return f"{name} ({shown(problem['input'])}): no such choice{suggestion(str(problem['input']), choices)}"
    message = problem["msg"].replace("Input should be", "must be").replace("Value error, ", "")
    return f"{name} ({shown(problem['input'])}) {message}"


def locate(location: Sequence[str | int], values: Any) -> tuple[list[str], Any]:
    """The path of keys that stand in `values`, without the names that pydantic adds for members of a union."""
    path, parent = [], values
    for i, part in enumerate(location):
        last = i == len(location) - 1
        inside = part in values if isinstance(values, Mapping) else isinstance(part, int)
        if not inside and not last:
            continue
        path.append(str(part))
        parent, values = values, values[part] if inside and not isinstance(values, str | int | float | None) else None
    return path, parent


def shown(value: Any) -> str:
    """A value as it is written in the settings."""
    if isinstance(value, tuple | list):
        return f"[{','.join(map(shown, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
