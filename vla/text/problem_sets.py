"""Disjoint sets of problems for training, validation and evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vla.data.chat import ChatFormat
from vla.data.rows import RowReader
from vla.rewards.compose import Rewards
from vla.text.hash_split import split_problems
from vla.text.problem import Problem
from vla.text.problem_families import make_family


@dataclass(frozen=True)
class ProblemSets:
    """Problems for training (by family), validation during training, and evaluation."""

    families: dict[str, list[Problem]]
    validation: list[Problem]
    evaluation: list[Problem]

    @property
    def train(self) -> list[Problem]:
        return [problem for family in self.families.values() for problem in family]

    @property
    def all_problems(self) -> list[Problem]:
        return [*self.train, *self.validation, *self.evaluation]

    def keep_usable(
        self, chat: ChatFormat, max_tokens: int, setting: str, reader: RowReader
    ) -> ProblemSets:
        """The problems whose prompt fits the chat template and `max_tokens`.

        Others are faulty rows of `reader`. `setting` names the limit in messages.

        Raises:
            ValueError: no problem is left for training or evaluation.
        """

        def usable(problems: Sequence[Problem]) -> list[Problem]:
            return [
                problem
                for problem in problems
                if self._fits(problem, chat, max_tokens, setting, reader)
            ]

        families = {name: usable(problems) for name, problems in self.families.items()}
        sets = ProblemSets(families, usable(self.validation), usable(self.evaluation))
        if not all([*families.values(), sets.evaluation]):
            raise ValueError(
                f"{setting} ({max_tokens}) leaves no problem for training or evaluation: raise it"
            )
        return sets

    @staticmethod
    def _fits(
        problem: Problem, chat: ChatFormat, max_tokens: int, setting: str, reader: RowReader
    ) -> bool:
        try:
            length = len(chat.prompt(problem.prompt_messages))
            if length > max_tokens:
                raise ValueError(
                    f"the prompt takes {length} tokens, {setting} is {max_tokens}: raise it"
                )
        except ValueError as error:
            where = problem.where or f"{problem.family}, {problem.question!r}"
            reader.skip_row(problem.family, f"{where}: {error}")
            return False
        return True

    def check_verifiers(self, rewards: Rewards) -> None:
        """Raise ValueError naming the first row or reward without an importable verifier."""
        rewards.check()
        # reversed, so that the first problem of each verifier stays
        first = {problem.verifier: problem for problem in reversed(self.all_problems)}
        for problem in first.values():
            try:
                rewards.check_verifier(problem.verifier)
            except ValueError as error:
                raise ValueError(f"{problem.where or problem.family}: {error}") from None

    def manifest(self) -> dict[str, object]:
        """The evaluation questions with their hash, and the sizes of the other sets."""
        questions = [problem.question for problem in self.evaluation]
        return {
            "evaluation_sha256": hashlib.sha256(json.dumps(questions).encode()).hexdigest(),
            "evaluation": questions,
            "num_validation": len(self.validation),
            "num_train": {name: len(problems) for name, problems in self.families.items()},
        }


def describe_shortfalls(counts: Mapping[str, tuple[int, int]]) -> list[str]:
    """A line for every setting above the number of problems: {setting: (value, number)}."""
    return [
        f"{setting} ({value}) is more than there are: {number} problems"
        for setting, (value, number) in counts.items()
        if value > number
    ]


def make_problem_sets(
    names: Sequence[str],
    num_problems: int | None,
    holdout_fraction: float,
    num_validation: int,
    num_evaluation: int,
    reader: RowReader | None = None,
) -> ProblemSets:
    """Split every family. Validation gets at most a fifth of the held-out problems.

    Held-out problems alternate between families, each question once. Validation and evaluation
    share no prompt.

    Raises:
        ValueError: no evaluation problem is left.
    """
    families = {}
    held_out = []
    for name in names:
        families[name], rest = split_problems(
            make_family(name, num_problems, reader), holdout_fraction
        )
        held_out.append(rest)
    longest = max(map(len, held_out))
    turns = [family[i] for i in range(longest) for family in held_out if i < len(family)]
    mixed = list({problem.question: problem for problem in reversed(turns)}.values())[::-1]
    count = max(1, min(num_validation, len(mixed) // 5)) if num_validation else 0
    validation_keys = {problem.key for problem in mixed[:count]}
    evaluation = [problem for problem in mixed[count:] if problem.key not in validation_keys][
        :num_evaluation
    ]
    if not evaluation:
        raise ValueError(
            f"text.holdout_fraction ({holdout_fraction}) leaves no evaluation problem: raise it"
        )
    return ProblemSets(families, mixed[:count], evaluation)
