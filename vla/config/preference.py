"""Settings of the preference objective, derived from the dataclasses in `vla.preference`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from vla.config.declarations import DeclaredSection, OneOf, named_sections
from vla.preference import OBJECTIVES


class PreferenceSection(DeclaredSection):
    """Settings of a preference objective; the fields are those of its dataclass."""

    group: ClassVar[str] = "preference"


PREFERENCE_SECTIONS = named_sections(OBJECTIVES, PreferenceSection)
"""{name of an objective: its section}."""
Preference = Annotated[PreferenceSection, OneOf(tuple(PREFERENCE_SECTIONS.values()))]
