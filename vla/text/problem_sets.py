"""Problems for training, for a look during training, and for the numbers that are reported: three that share none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vla.data.rows import RowReader
from vla.text.problems import Problem, make_family, split


@dataclass(frozen=True)
class ProblemSets:
    """Problems for training (by family), for a look during training, and for the numbers that are reported."""

    families: dict[str, list[Problem]]
    validation: list[Problem]
    evaluation: list[Problem]

    @property
    def train(self) -> list[Problem]:
        return [problem for family in self.families.values() for problem in family]

    def manifest(self) -> dict[str, Any]:
        """What the run was judged on, under a hash, and how much it may train on."""
        questions = [problem.question for problem in self.evaluation]
        return {
            "evaluation_sha256": hashlib.sha256(json.dumps(questions).encode()).hexdigest(),
            "evaluation": questions,
            "num_validation": len(self.validation),
            "num_train": {name: len(problems) for name, problems in self.families.items()},
        }


def make_problem_sets(
    names: Sequence[str],
    num_problems: int | None,
    holdout_fraction: float,
    num_validation: int,
    num_evaluation: int,
    reader: RowReader | None = None,
) -> ProblemSets:
    """Split every family; held-out problems of all families take turns. Validation gets a fifth of them at most."""
    families, held_out = {}, []
    for name in names:
        families[name], rest = split(make_family(name, num_problems, reader), holdout_fraction)
        held_out.append(rest)
    longest = max(map(len, held_out))
    mixed = [family[i] for i in range(longest) for family in held_out if i < len(family)]
    count = max(1, min(num_validation, len(mixed) // 5)) if num_validation else 0
    evaluation = mixed[count : count + num_evaluation]
    if not evaluation:
        raise ValueError(f"text.holdout_fraction ({holdout_fraction}) leaves no evaluation problem: raise it")
    return ProblemSets(families, mixed[:count], evaluation)
