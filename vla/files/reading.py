"""Checked readers of text files: text, JSON, JSON lines and YAML.

Each returns the content, or raises `DamagedFile` with path, fault and remedy in one line. `kind` is
a type that pydantic checks: `dict`, `list[dict]`, or a TypedDict of required keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

RESTORE = "restore it from a copy"
JsonObject = dict[str, Any]
"""The values of a JSON object, checked where they are read."""
JsonMapping = Mapping[str, Any]
"""A JSON object that is only read."""
MAPPING = JsonObject
KEYS = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
"""`__pydantic_config__` of a TypedDict of a file's required keys; others are allowed."""
MAX_MESSAGE_CHARACTERS = 200
"""Longest part of a library's message that is repeated, in characters."""


class DamagedFile(ValueError):
    """A file that is missing, unreadable or malformed, with path, fault and remedy.

    `fault` may be another error; its first line is used.
    """

    def __init__(self, path: Path | str, fault: object, remedy: str = RESTORE) -> None:
        self.fault = short_message(fault)
        super().__init__(f"{path} cannot be read: {self.fault}; {remedy}")


def short_message(fault: object) -> str:
    """The first line of a library's message, or the kind of its error."""
    lines = str(fault).strip().splitlines()
    message = lines[0][:MAX_MESSAGE_CHARACTERS] if lines else type(fault).__name__
    return f"{message} is missing" if isinstance(fault, KeyError) else message


@contextmanager
def validating_file(path: Path | str, remedy: str = RESTORE) -> Iterator[None]:
    """Turn errors from a file's values within the block into a `DamagedFile`."""
    try:
        yield
    except DamagedFile:
        raise
    except OSError as error:
        raise DamagedFile(path, error.strerror or error, remedy) from None
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:
        raise DamagedFile(path, error, remedy) from error


def read_text(path: Path, remedy: str = RESTORE) -> str:
    """The text of a file in UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DamagedFile(path, "it does not exist", remedy) from None
    except IsADirectoryError:
        raise DamagedFile(path, "it is a folder, a file is expected", remedy) from None
    except UnicodeDecodeError as error:
        raise DamagedFile(path, f"byte {error.start + 1} is no text in UTF-8", remedy) from None
    except OSError as error:
        raise DamagedFile(path, error.strerror or error, remedy) from None


def read_json(
    path: Path, kind: object = MAPPING, remedy: str = RESTORE, *, finite: bool = True
) -> Any:
    """The content of a JSON file, checked against `kind`; `finite` refuses NaN and infinity."""
    return validate_values(
        path, parse_json(read_text(path, remedy), path, remedy, finite), kind, remedy
    )


def read_optional_json(
    path: Path, otherwise: object, kind: object = MAPPING, remedy: str = RESTORE
) -> Any:
    """The content of a JSON file, or `otherwise` where the file does not exist."""
    return read_json(path, kind, remedy) if path.exists() else otherwise


def read_yaml(path: Path, kind: object = MAPPING, remedy: str = RESTORE) -> Any:
    """The content of a YAML file, checked against `kind`."""
    text = read_text(path, remedy)
    try:
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        raise DamagedFile(
            path, f"no YAML ({error.problem or error.context}{where})", remedy
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DamagedFile(path, f"no YAML ({short_message(error)})", remedy) from None
    return validate_values(path, values, kind, remedy)


def read_json_lines(path: Path, kind: object = MAPPING, remedy: str = RESTORE) -> list[Any]:
    """One value for every non-blank line.

    A last line without its end, cut by a crash, is left out.
    """
    lines = read_text(path, remedy).split("\n")
    numbered = [(f"{path}, line {i}", line) for i, line in enumerate(lines[:-1], 1) if line.strip()]
    return [
        validate_values(where, parse_json(line, where, remedy, finite=True), kind, remedy)
        for where, line in numbered
    ]


def parse_json(text: str, where: Path | str, remedy: str, finite: bool) -> Any:
    """The value of a JSON text; `where` is its place in error messages."""

    def refuse(constant: str) -> NoReturn:
        raise DamagedFile(where, f"no JSON (it holds {constant})", remedy)

    def number(digits: str) -> float:
        return value if math.isfinite(value := float(digits)) else refuse(digits)

    if not text.strip("\0 \t\r\n"):
        raise DamagedFile(where, "it is empty", remedy)
    try:
        if not finite:
            return json.loads(text)
        return json.loads(text, parse_constant=refuse, parse_float=number)
    except json.JSONDecodeError as error:
        raise DamagedFile(
            where, f"no JSON ({error.msg}, line {error.lineno}, column {error.colno})", remedy
        ) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, DamagedFile):
            raise
        raise DamagedFile(where, f"no JSON ({short_message(error)})", remedy) from None


def validate_values(path: Path | str, values: object, kind: object, remedy: str = RESTORE) -> Any:
    """The values, checked against `kind`.

    Raises DamagedFile.
    """
    try:
        type_adapter(kind).validate_python(values, strict=True)
    except ValidationError as error:
        raise DamagedFile(path, describe_fault(error), remedy) from None
    return values


@lru_cache(maxsize=64)
def type_adapter(kind: object) -> TypeAdapter:
    return TypeAdapter(kind)  # type: ignore[arg-type]  # any type that pydantic checks


def describe_fault(error: ValidationError) -> str:
    """The first missing or malformed value, as a clause."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{name} is missing"
    expectation = (
        first["msg"].replace("Input should be", "it must be").replace("valid dictionary", "mapping")
    )
    return f"{name or 'it'} is {format_value(first['input'])}, {expectation}"


def format_value(value: object) -> str:
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    return "empty" if value is None else repr(value)[:40]
