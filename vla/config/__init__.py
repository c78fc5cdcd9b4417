"""Frozen, validated settings of a run. The YAML under configs/ holds every value once; these types
hold none.

`load(overrides)` is the only way in. A choice between kinds of a thing is a union discriminated by
its `name`, so that a setting of one kind is refused under another (`gae_lambda` under grpo).
`find_conflicts` says what single settings cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from vla.config.compose import ConfigError, compose, split_overrides
from vla.config.conflicts import find_conflicts
from vla.config.effects import check_unused_settings
from vla.config.explain import explain
from vla.config.robot import RobotConfig
from vla.config.text import TextConfig
from vla.config.whole_episodes import with_whole_episodes

__all__ = ["Config", "ConfigError", "RobotConfig", "TextConfig", "freeze", "load"]

Config = RobotConfig | TextConfig
CONFIG = TypeAdapter(Annotated[Config, Field(discriminator="mode")])


def load(overrides: Sequence[str] = (), say: Callable[[str], None] = lambda line: None) -> Config:
    """Settings from `key=value` and `group=option` strings, as on the command line. `say` is told
    in a line of what could not be had and what is done instead.

    Raises `ConfigError`, a ValueError, that names each setting at fault, its value and the remedy.
    """
    config, note = validate(compose(overrides)), None
    if isinstance(config, RobotConfig):
        config, note = with_whole_episodes(config, split_overrides(overrides))
        if note is not None:
            say(note)
    check_conflicts(config)
    for line in check_unused_settings(config, overrides, note is not None):
        say(line)
    return config


def freeze(values: Any) -> Config:
    """Validated settings from plain values, e.g. of a saved config.yaml."""
    return check_conflicts(validate(values))


def validate(values: Any) -> Config:
    """Values of the right kinds and ranges, each by itself."""
    try:
        return CONFIG.validate_python(values)
    except ValidationError as error:
        raise ConfigError(explain(error, values)) from None


def check_conflicts(config: Config) -> Config:
    """The same settings, which go together."""
    found = find_conflicts(config)
    if found:
        raise ConfigError("\n".join(found))
    return config
