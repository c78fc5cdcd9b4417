"""Settings that have a new name: an old one is refused with it, on the command line, in a YAML file
and in the folder of an earlier run."""

from __future__ import annotations

from vla.config.errors import ConfigError

RENAMED: dict[str, str] = {}
"""{old dotted key: new dotted key}; a section stands for all that is in it."""


def new_name(key: str) -> str | None:
    """The present name of a setting that was renamed, else None."""
    parts = key.split(".")
    for i in range(len(parts), 0, -1):
        section = RENAMED.get(".".join(parts[:i]))
        if section is not None:
            return ".".join([section, *parts[i:]])
    return None


def check_renamed(key: str, value: object) -> None:
    """Refuse the old name of a setting.

    Raises ConfigError that says the new one.
    """
    new = new_name(key)
    if new is not None:
        raise ConfigError(f"{key}={value}: this setting is now called {new}")
