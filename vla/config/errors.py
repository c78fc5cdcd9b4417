"""The exception of a wrong setting."""

from __future__ import annotations


class ConfigError(ValueError):
    """One or more wrong settings; each line names the setting, its value and the remedy."""
