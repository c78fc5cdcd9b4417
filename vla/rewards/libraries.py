"""Verifiers that ask a library: equal mathematical expressions (math-verify), answers of reasoning-gym."""

from __future__ import annotations

import re
from typing import Any

from vla.rewards.sample import UNSCORABLE, Sample


def math_equal(sample: Sample) -> float:
    """1 when the completion's final expression equals the answer's mathematically (1/2 and 0.5, 2x and x + x).

    Unscorable when the answer itself cannot be read. The library's own time limits use signals, which work in the main
    thread only; the time limit here is that of the process (`pool.py`), so they are off.
    """
    from math_verify import parse, verify

    answer = parse(f"${sample.answer}$", parsing_timeout=None)
    if not answer:
        return UNSCORABLE
    completion = parse(sample.completion, parsing_timeout=None)
    return float(verify(answer, completion, timeout_seconds=None))


def reasoning_gym_score(sample: Sample) -> float:
    """The score that the problem's own reasoning-gym family gives; the last number counts where the answer is one.

    `facts["family"]` names the family, `facts["entry"]` is the data set's entry.
    """
    import reasoning_gym

    family, entry = sample.facts["family"], dict(sample.facts["entry"])
    dataset: Any = reasoning_gym.create_dataset(family, size=1, seed=0)
    return float(dataset.score_answer(final_answer(sample.completion, str(entry["answer"])), entry))


def final_answer(completion: str, answer: str) -> str:
    """What the completion answers: the last number when the answer is a number, else the whole text trimmed."""
    text = completion.strip()
    if re.fullmatch(r"-?\d+(\.\d+)?", answer.strip()):
        numbers = re.findall(r"-?\d+(?:\.\d+)?", text)
        return numbers[-1] if numbers else text
    return text
