"""What an evaluation came to, as plain numbers: rates with n, interval and decoding, by condition
and by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vla.evaluate.success import SuccessRate, compare

NOMINAL = "as trained"
"""What the condition is called in which nothing is changed."""


@dataclass(frozen=True)
class Judged:
    """Episodes of one policy under one condition and decoding, an entry for each start.

    `temperature` None is greedy. `stages` holds the best value of every reward term in each
    episode.
    """

    condition: str
    temperature: float | None
    success: Bool[np.ndarray, "n"]
    returns: Float[np.ndarray, "n"]
    control_steps: Float[np.ndarray, "n"]
    stages: Mapping[str, np.ndarray]
    tasks: tuple[str, ...]

    @property
    def decoding(self) -> str:
        return "greedy" if self.temperature is None else "sampled"

    @property
    def rate(self) -> SuccessRate:
        return SuccessRate.of(self.success, self.temperature)


def summarize(judged: Judged) -> dict[str, Any]:
    """One condition and decoding, with every start's outcome. Lengths are in control steps."""
    won = judged.control_steps[judged.success]
    return {
        "condition": judged.condition,
        **judged.rate.to_dict(),
        "text": str(judged.rate),
        "mean_return": float(judged.returns.mean()),
        "mean_control_steps": float(judged.control_steps.mean()),
        "mean_control_steps_of_successes": float(won.mean()) if len(won) else None,
        "reached": {
            name: float((values > 0.5).mean())
            for name, values in judged.stages.items()
            if "/" not in name
        },
        "outcomes": "".join("1" if won else "0" for won in judged.success),
    }


def by_task(judged: Judged) -> list[dict[str, Any]]:
    """The rate of every task among the starts, commonest first."""
    names, tasks = np.unique(judged.tasks, return_inverse=True)
    rows = [
        {
            "task": str(name),
            **SuccessRate.of(judged.success[tasks == i], judged.temperature).to_dict(),
        }
        for i, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: -row["num_starts"])


def against(first: Judged, second: Judged) -> dict[str, Any]:
    """`second` against `first`, start by start."""
    test = compare(first.success, second.success)
    alike = first.decoding == second.decoding
    decoding = second.decoding if alike else f"{second.decoding} against {first.decoding}"
    return {
        "condition": second.condition,
        "decoding": decoding,
        "text": str(test),
        **test.to_dict(),
    }


def changes(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Every changed condition against the nominal one of the same decoding."""
    nominal = {j.decoding: j for j in judged if j.condition == NOMINAL}
    return [
        against(nominal[j.decoding], j)
        for j in judged
        if j.condition != NOMINAL and j.decoding in nominal
    ]
