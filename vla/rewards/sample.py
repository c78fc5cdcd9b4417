"""What a verifier sees, and what it says.

A verifier is a plain function from a `Sample` to a score in [0, 1]; NaN says that it could not tell
(`UNSCORABLE`), which is not the same as wrong. This module and its neighbours load no torch:
verifiers run in a process of their own (`pool.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

UNSCORABLE = math.nan


@dataclass(frozen=True)
class Sample:
    """One completion of one prompt, as text, with what is known about the right answer.

    `finished`: the completion ended by itself, not at the length limit. `facts` is what a verifier
    may need besides the answer: a schema, tests, the entry of a data set. Everything must survive
    JSON. The ids are those that were read and drawn, for rewards that are models themselves.
    """

    prompt: str
    completion: str
    answer: str
    finished: bool = True
    num_tokens: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    prompt_ids: Sequence[int] = ()
    completion_ids: Sequence[int] = ()


def fact_texts(sample: Sample, fact: str) -> Sequence[str]:
    """The texts of a fact, of which one alone is one text and not its letters; the answer where
    there are none."""
    texts = sample.facts.get(fact) or sample.answer
    return [texts] if isinstance(texts, str) else texts


Verifier = Callable[[Sample], float]
