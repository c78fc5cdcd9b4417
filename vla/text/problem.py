"""A verifiable problem: question, correct answer, and the verifier that compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vla.data.messages import Message, prompt_key, user_message
from vla.rewards.sample import Sample


@dataclass(frozen=True)
class Problem:
    """A question with its answer, and the verifier of completions.

    `verifier` is a name of `vla.rewards.verifier_worker.find_verifier`, or `code`; `facts` are its
    further inputs. `messages` is the prompt where a row holds messages; where it is empty, the
    question is a user's message. `where` names the row in errors.
    """

    question: str
    answer: str
    verifier: str
    family: str
    facts: Mapping[str, object] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    where: str = ""

    @property
    def prompt_messages(self) -> Sequence[Message]:
        """The messages of the prompt."""
        return self.messages or user_message(self.question)

    @property
    def key(self) -> str:
        """The key that decides the side of a split."""
        return prompt_key(self.prompt_messages)

    def sample(self, completion: str, finished: bool, num_tokens: int) -> Sample:
        """A completion of this problem as input of a verifier."""
        facts = {"verifier": self.verifier, **self.facts}
        return Sample(self.question, completion, self.answer, finished, num_tokens, facts)
