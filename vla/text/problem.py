"""A verifiable problem: a question, the right answer, and the name of the verifier that compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vla.data.messages import Message, prompt_key, user_message
from vla.rewards.sample import Sample


@dataclass(frozen=True)
class Problem:
    """`verifier` is a name that `vla.rewards.verifier_worker.find_verifier` knows, or `code`; `facts` is
    what it needs. `messages`: what is asked, where a row gives messages; empty: the question, as a
    user's. `where` names the row.
    """

    question: str
    answer: str
    verifier: str
    family: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    where: str = ""

    @property
    def prompt_messages(self) -> Sequence[Message]:
        """The messages of the prompt."""
        return self.messages or user_message(self.question)

    @property
    def key(self) -> str:
        """What decides on which side of a split the problem falls."""
        return prompt_key(self.prompt_messages)

    def sample(self, completion: str, finished: bool, num_tokens: int) -> Sample:
        """A completion of this problem, for a verifier."""
        facts = {"verifier": self.verifier, **self.facts}
        return Sample(self.question, completion, self.answer, finished, num_tokens, facts)
