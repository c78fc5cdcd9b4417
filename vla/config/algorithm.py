"""Settings of the algorithm, derived from the dataclasses in `vla.rl.algorithms`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from vla.config.declarations import DeclaredSection, OneOf, named_sections
from vla.config.errors import ConfigError
from vla.rl.algorithms import algorithm_table
from vla.rl.traits import AlgorithmTraits


class AlgorithmSection(DeclaredSection):
    """Settings of an algorithm; the fields are those of its dataclass."""

    group: ClassVar[str] = "algorithm"

    @property
    def traits(self) -> AlgorithmTraits:
        """Properties that the algorithm declares for these settings."""
        traits: AlgorithmTraits = self.declared
        return traits


def checked_sections() -> dict[str, type[AlgorithmSection]]:
    """The section of every algorithm, {name: section}.

    Raises:
        ConfigError: an algorithm lacks a class variable or property of `AlgorithmTraits`.
    """
    sections = named_sections(algorithm_table(), AlgorithmSection)
    traits = [name for name in vars(AlgorithmTraits) if not name.startswith("_")]
    for name, section in sections.items():
        missing = [trait for trait in traits if not hasattr(section.declaration, trait)]
        if missing:
            raise ConfigError(
                f"algorithm {name} does not declare {', '.join(missing)}: "
                "add class variables or properties (vla.rl.traits.AlgorithmTraits)"
            )
    return sections


ALGORITHM_SECTIONS = checked_sections()
"""{name of an algorithm: its section}."""
Algorithm = Annotated[AlgorithmSection, OneOf(tuple(ALGORITHM_SECTIONS.values()))]
