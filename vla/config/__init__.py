"""Frozen, validated settings of a run: `load` composes and checks them.

The YAML under configs/ holds every default once; the types hold none. A choice between kinds is a
union discriminated by `name`. A setting of one kind is therefore refused under another, e.g.
`gae_lambda` under grpo. `find_conflicts` checks settings against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

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
    """Compose and check settings from `key=value` and `group=option` strings.

    Args:
        overrides: the strings, as on the command line.
        say: receives one line for each setting that was replaced or has no effect.

    Raises:
        ConfigError: a setting cannot be; the message names it, its value and the remedy.
    """
    config = validate(compose(overrides))
    note = None
    if isinstance(config, RobotConfig):
        config, note = with_whole_episodes(config, split_overrides(overrides))
        if note is not None:
            say(note)
    check_conflicts(config)
    for line in check_unused_settings(config, overrides, note is not None):
        say(line)
    return config


def freeze(values: object) -> Config:
    """Check plain values, e.g. of a saved config.yaml, and return them as settings.

    Raises:
        ConfigError: a value cannot be, or two settings conflict.
    """
    return check_conflicts(validate(values))


def validate(values: object) -> Config:
    """Check the type and range of every value; conflicts between settings are not checked."""
    try:
        return CONFIG.validate_python(values)
    except ValidationError as error:
        raise ConfigError(explain(error, values)) from None


def check_conflicts(config: Config) -> Config:
    """Return the settings unchanged, or raise ConfigError where two of them conflict."""
    problems = find_conflicts(config)
    if problems:
        raise ConfigError("\n".join(problems))
    return config
