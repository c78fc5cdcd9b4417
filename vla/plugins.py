"""Tables of named parts: the built-in ones, extended by entry points of installed packages.

A table is {name: "module:attribute"}, so that listing names imports none of the modules. A package
adds a part under the group of its kind, e.g. in its pyproject.toml:

    [project.entry-points."vla.algorithms"]
    spo = "my_package.spo:SPO"
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoints, entry_points
from typing import Any

from vla.spelling import suggestion


def extend_table(table: Mapping[str, str], group: str) -> dict[str, str]:
    """Merge a table with the entry points of a group.

    Raises:
        ValueError: two parts have the same name.
    """
    merged = dict(table)
    owners = dict.fromkeys(table, "vla")
    for point in _installed(tuple(sys.path)).select(group=group):
        owner = point.dist.name if point.dist is not None else point.value
        if merged.get(point.name, point.value) != point.value:
            raise ValueError(
                f"{group}: {point.name!r} of package {owner} is taken by {owners[point.name]} "
                f"({merged[point.name]}): rename the entry point, or uninstall one of the packages"
            )
        merged[point.name] = point.value
        owners[point.name] = owner
    return merged


def find_target(table: Mapping[str, str], kind: str, name: str) -> str:
    """Look up the "module:attribute" of a name.

    Raises:
        ValueError: the name is unknown; the message suggests the nearest one.
    """
    if name not in table:
        raise ValueError(f"{kind} ({name}) is unknown{suggestion(name, table)}")
    return table[name]


def load_target(target: str) -> Any:
    """Import the module of "module:attribute" and return the attribute.

    Raises:
        ValueError: the module has no such attribute.
    """
    module, _, attribute = target.partition(":")
    loaded = import_module(module)
    if not hasattr(loaded, attribute):
        raise ValueError(f"{target}: module {module} has no {attribute!r}")
    return getattr(loaded, attribute)


@cache
def _installed(path: tuple[str, ...]) -> EntryPoints:
    """All entry points on the import path; scanning it takes tens of milliseconds."""
    return entry_points()
