"""Samples and scores of verifiers.

A verifier is a plain function from a `Sample` to a score in [0, 1]. NaN (`UNSCORABLE`) means that
the sample cannot be scored, which is not the same as wrong. This module and its neighbours load no
torch: verifiers run in a process of their own (`verifier_process.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

UNSCORABLE = math.nan


@dataclass(frozen=True)
class Sample:
    """One completion of one prompt, as text, with the right answer.

    `finished`: the completion ended by itself, not at the length limit. `facts` are the other
    columns of the problem: a schema, tests, the entry of a data set. Every field must survive JSON.
    The token ids are for rewards that are models themselves.
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
    """The texts of a fact; a single text counts as a list of one, and the answer stands in for a
    missing fact."""
    texts = sample.facts.get(fact) or sample.answer
    return [texts] if isinstance(texts, str) else texts


Verifier = Callable[[Sample], float]
