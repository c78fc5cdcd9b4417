"""Verifiable problems of a user: a file or a hub data set with a prompt, an answer, and how it is verified.

prompt (or question)   a text                        answer     a text or a number; 0.5 or "... #### 42" (GSM8K)
verifier               its name; without one, by what else the row has:
tests                  code run in the sandbox       tools, call     a tool call      schema     JSON
words                  all must occur                references      for bleu, chrf, rouge_l
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla.data.conversations import Row, read_rows
from vla.rewards.code import read_tests
from vla.rewards.match import read_number
from vla.text.problems import Problem

FACTS = {"tests": "code", "tools": "tool_call", "schema": "json_value", "words": "contains", "references": "bleu"}
"""Columns that a verifier reads, and the verifier that a row with one gets when it names none."""


def is_source(name: str) -> bool:
    """Whether a family is a file or a hub data set and not one of ours."""
    return "/" in name or Path(name).suffix in (".jsonl", ".ndjson", ".json", ".parquet")


def read_problems(source: str, num_problems: int) -> list[Problem]:
    """The first `num_problems` rows; the source's name is the family.

    Raises ValueError naming the row and what it lacks, and when there are none.
    """
    problems = []
    for row in read_rows(source):
        problems.append(problem_of(row, source))
        if len(problems) == num_problems:
            break
    if not problems:
        raise ValueError(f"{source} has no rows")
    return problems


def problem_of(row: Row, family: str) -> Problem:
    """A problem from a row of any of the kinds."""
    values = row.values
    question = values.get("prompt", values.get("question"))
    if not isinstance(question, str) or not question:
        raise ValueError(f"{row.where}: has no text in the column prompt (or question)")
    facts = {name: values[name] for name in (*FACTS, "call") if values.get(name) is not None}
    answer = values.get("answer")
    if answer is None and not facts:
        raise ValueError(
            f"{row.where}: nothing says which completion is right; needed is one of answer, {', '.join(FACTS)}"
        )
    if not isinstance(answer, str | int | float | None):
        raise ValueError(f"{row.where}: answer ({answer!r}) must be a text or a number")
    text = "" if answer is None else str(answer)
    verifier = verifier_of(values, text, row.where)
    if verifier == "code":
        try:
            read_tests(facts.get("tests"))
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from None
    return Problem(question, text, verifier, family, facts)


def verifier_of(values: Any, answer: str, where: str) -> str:
    """The verifier a row names, or the one that fits what it has: a number is compared as a number."""
    named = values.get("verifier")
    if named is not None:
        if not isinstance(named, str):
            raise ValueError(f"{where}: verifier ({named!r}) must be a name")
        return named
    for column, verifier in FACTS.items():
        if values.get(column) is not None:
            return verifier
    return "exact" if read_number(answer) is None else "last_number"
