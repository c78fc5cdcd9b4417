"""Which settings a run reads: sections of the settings that remember what was asked of them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

import vla.config
from vla.config import Config, ConfigError, load
from vla.config.effects import find_unused_settings
from vla.config.section import Section

CHECKS = {
    *(
        "vla.config",
        "vla.config.conflicts",
        "vla.config.effects",
        "vla.config.explain",
        "vla.config.model_conflicts",
    ),
    *(
        "vla.config.processes",
        "vla.config.rl_conflicts",
        "vla.config.whole_episodes",
        "vla.cli",
    ),
}
"""Who reads settings to check or to print them: that is no effect."""


@dataclass
class Reads:
    """The settings of the first run that was composed, and what of any settings was read since."""

    config: Config | None = None
    seen: set[tuple[int, str]] = field(default_factory=set)

    def note(self, section: Section, names: Any) -> None:
        self.seen |= {(id(section), name) for name in names}

    @property
    def unread(self) -> set[str]:
        """Dotted paths of the settings that nobody asked for."""
        assert self.config is not None
        return {
            path for path, owner, name in leaves(self.config) if (id(owner), name) not in self.seen
        }


def leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Section, str]]:
    """(dotted path, section, name) of every setting that holds no section."""
    for name in type(section).model_fields:
        value = vars(section)[name]
        if isinstance(value, Section):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, section, name


@contextmanager
def recorded_reads(reads: Reads) -> Iterator[None]:
    """Remember what code outside the checks reads of settings."""
    plain_dump: Callable[..., Any] = BaseModel.model_dump
    plain_checked = vla.config.check_conflicts

    def get(self: Section, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if (
            name in type(self).model_fields
            and sys._getframe(1).f_globals.get("__name__") not in CHECKS
        ):
            reads.note(self, [name])
        return value

    def dump(self: Section, **how: Any) -> Any:
        if sys._getframe(1).f_globals.get("__name__") not in CHECKS:
            note_all(self, how.get("include"))
        return plain_dump(self, **how)

    def note_all(section: Section, names: Any) -> None:
        names = (
            set(type(section).model_fields)
            if names is None
            else set(names) & set(type(section).model_fields)
        )
        reads.note(section, names)
        for name in names:
            if isinstance(vars(section)[name], Section):
                note_all(vars(section)[name], None)

    def checked(config: Config) -> Config:
        reads.config = reads.config or config
        return plain_checked(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "__getattribute__", get)
        patch.setattr(Section, "model_dump", dump)
        patch.setattr(vla.config, "check_conflicts", checked)
        yield


def without_effect(reads: Reads, given: list[str], read_elsewhere: set[str]) -> set[str]:
    """Settings that a run did not read, that no rule calls without effect, and that are accepted
    when changed."""
    assert reads.config is not None
    rules = find_unused_settings(reads.config)
    unread = {
        path for path in reads.unread - read_elsewhere if not any(one.covers(path) for one in rules)
    }
    changes = {
        p: f"{p}={json.dumps(other(owner, name))}"
        for p, owner, name in leaves(reads.config)
        if p in unread
    }
    refused = {
        p
        for p, change in changes.items()
        if any(line.startswith(p) for line in refusal([*given, change]))
    }
    return changes.keys() - refused


def refusal(given: list[str]) -> list[str]:
    """What is said against these settings, a line each; nothing where they are accepted."""
    try:
        load(given)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def other(owner: Section, name: str) -> Any:
    """Another value that a setting can have by itself."""
    kind = TypeAdapter(type(owner).model_fields[name].rebuild_annotation())
    choices = re.findall(r"'(\w+)'", str(type(owner).model_fields[name].annotation))
    for value in (*choices, True, False, 2, 3, 64, 0.5, 0.25, "other", ("other",)):
        with suppress(ValidationError):
            if kind.validate_python(value, strict=True) != vars(owner)[name]:
                return value
    raise AssertionError(f"{type(owner).__name__}.{name} has no other value here: name one")
