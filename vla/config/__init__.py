"""Frozen, validated settings of a run. The YAML under configs/ holds every value once; these types hold none.

`load(overrides)` is the only way in. A choice between kinds of a thing is a union discriminated by its `name`, so that
a setting of one kind is refused under another (`gae_lambda` under grpo). `conflicts` says what single settings cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from vla.config.compose import ConfigError, compose
from vla.config.conflicts import conflicts
from vla.config.explain import explain
from vla.config.robot import RobotConfig
from vla.config.text import TextConfig

__all__ = ["Config", "ConfigError", "RobotConfig", "TextConfig", "freeze", "load"]

Config = RobotConfig | TextConfig
CONFIG = TypeAdapter(Annotated[Config, Field(discriminator="mode")])


def load(overrides: Sequence[str] = ()) -> Config:
    """Settings from `key=value` and `group=option` strings, as on the command line.

    Raises `ConfigError`, a ValueError, that names each setting at fault, its value and the remedy.
    """
    return freeze(compose(overrides))


def freeze(values: dict[str, Any]) -> Config:
    """Validated settings from plain values, e.g. of a saved config.yaml."""
    try:
        config = CONFIG.validate_python(values)
    except ValidationError as error:
        raise ConfigError(explain(error, values)) from None
    found = conflicts(config)
    if found:
        raise ConfigError("\n".join(found))
    return config
