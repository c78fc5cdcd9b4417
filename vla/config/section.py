"""`Section`, the base class of all sections of the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A section of the settings: frozen, strictly typed, without defaults or unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, values: Any) -> Any:
        """Convert the lists of YAML to tuples, because sections are immutable."""
        if not isinstance(values, Mapping):
            return values
        return {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
