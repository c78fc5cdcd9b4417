"""The error of a setting."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting that cannot be: the message names it, its value and the remedy, a line for each."""
