"""Settings of the policy, derived from the dataclasses in `vla.policies`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from vla.config.declarations import DeclaredSection, OneOf, named_sections
from vla.policies import FOREIGN_POLICIES, policy_table
from vla.policies.traits import PolicyTraits
from vla.ranges import InstructionLength, Name, SmallCount


class PolicySection(DeclaredSection):
    """Settings of a policy kind; the fields are those of its dataclass.

    `path` and `statistics` belong to every kind: the policy that a run starts from.
    """

    group: ClassVar[str] = "policy"
    path: Name | None
    statistics: Literal["policy", "data"]
    chunk: SmallCount
    instruction_length: InstructionLength

    @property
    def traits(self) -> PolicyTraits:
        """Properties that the policy kind declares for these settings."""
        traits: PolicyTraits = self.declared
        return traits


POLICY_SECTIONS = named_sections(policy_table() | FOREIGN_POLICIES, PolicySection)
"""{name of a policy kind: its section}."""
Policy = Annotated[PolicySection, OneOf(tuple(POLICY_SECTIONS.values()))]
