"""Settings of the algorithm, derived from the dataclasses in `vla.rl.algorithms`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from vla.config.declarations import DeclaredSection, OneOf, named_sections
from vla.rl.algorithms import algorithm_table
from vla.rl.traits import AlgorithmTraits


class AlgorithmSection(DeclaredSection):
    """Settings of an algorithm; the fields are those of its dataclass."""

    group: ClassVar[str] = "algorithm"

    @property
    def traits(self) -> AlgorithmTraits:
        """What the algorithm declares about itself with these settings."""
        traits: AlgorithmTraits = self.declared
        return traits


ALGORITHM_SECTIONS = named_sections(algorithm_table(), AlgorithmSection)
"""{name of an algorithm: its section}."""
Algorithm = Annotated[AlgorithmSection, OneOf(tuple(ALGORITHM_SECTIONS.values()))]
