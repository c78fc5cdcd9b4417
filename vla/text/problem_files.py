"""Verifiable problems of a file or hub data set: prompt, answer, and the verifier of each row.

prompt (or question)   a text, or messages
answer                 a text or a number: 0.5, or "... #### 42" (GSM8K); also the columns
                       ground_truth, reward_model.ground_truth (verl) and solution
verifier               name of the verifier; without it, the other columns select one:
tests                  code, run in the sandbox
tools, call            a tool call
schema                 JSON
words                  all must occur
references             for bleu, chrf, rouge_l
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vla.data.messages import messages_to_text, normalize_words, parse_prompt
from vla.data.rows import Row, RowReader
from vla.rewards.code import read_tests
from vla.rewards.compose import CODE
from vla.rewards.verifiers import ANSWER_PREFIX, verifier_table
from vla.rewards.verifiers.answer_types import extract_final_answer, select_verifier
from vla.rewards.verifiers.numbers import find_last_box
from vla.text.problem import Problem

FACTS = {
    "tests": CODE,
    "tools": "tool_call",
    "schema": "json_value",
    "words": "contains",
    "references": "bleu",
}
"""{column that a verifier reads: the verifier of a row with it that names none}."""
QUESTIONS = ("prompt", "question", "problem")
NEEDED = {CODE: "tests", "tool_call": "tools", "json_value": "schema"}
"""{verifier: the column that its rows must have beside an answer}."""
WITHOUT_ANSWER = (*NEEDED, "contains", "bleu", "chrf", "rouge_l", "think_format", "think_tags")
"""Verifiers that need no answer."""


def read_problems(
    source: str, num_problems: int | None, reader: RowReader | None = None
) -> list[Problem]:
    """At most `num_problems` problems of a source, whose name is the family.

    A question that occurs in several rows with one answer counts once.

    Raises:
        ValueError: a row is faulty, or answers the question of an earlier row differently.
    """
    reader = reader or RowReader()
    first: dict[str, Problem] = {}

    def use(row: Row) -> Problem:
        problem = parse_problem(row, source)
        earlier = first.setdefault(normalize_words(problem.question), problem)
        if _answers(earlier) != _answers(problem):
            raise ValueError(
                f"{row.where}: repeats the question of {earlier.where} with another answer"
            )
        return problem

    used = reader.read(source, use)
    problems = list(first.values())
    if len(used) > len(problems):
        reader.note(
            source,
            f"{len(used) - len(problems)} rows repeat the question of an earlier row; "
            "each question counts once",
        )
    return problems[:num_problems]


def _answers(problem: Problem) -> tuple[object, ...]:
    return problem.answer, problem.verifier, problem.facts


def parse_problem(row: Row, family: str) -> Problem:
    """The problem of a row.

    Raises:
        ValueError: the row is faulty; the message names it and its column.
    """
    values = row.values
    where = row.where
    column = next((name for name in QUESTIONS if name in values), None)
    if column is None:
        raise ValueError(f"{where}: has no text in the column prompt (or question)")
    messages = parse_prompt(values, where, column)
    check_choices(values, messages_to_text(messages), where)
    facts = {name: values[name] for name in (*FACTS, "call") if name in values}
    name, answer = find_answer(values)
    if answer is None and not facts:
        raise ValueError(
            f"{where}: nothing says which completion is right; "
            f"needed is one of answer, {', '.join(FACTS)}"
        )
    if not isinstance(answer, str | int | float | None) or (
        isinstance(answer, float) and not math.isfinite(answer)
    ):
        raise ValueError(f"{where}: {name} ({answer!r}) must be a text or a number")
    text = "" if answer is None else extract_final_answer(str(answer))
    verifier = choose_verifier(values, text, where)
    check_verifier(verifier, text, facts, where)
    return Problem(
        messages_to_text(messages),
        text,
        verifier,
        family,
        validate_facts(facts, where),
        messages,
        where,
    )


def check_choices(values: Mapping[str, object], question: str, where: str) -> None:
    """Raise ValueError where choices are not part of the prompt: their column is not shown."""
    for column in ("choices", "options"):
        choices = values.get(column)
        texts = choices.get("text", choices.values()) if isinstance(choices, Mapping) else choices
        if (
            isinstance(texts, Iterable)
            and not isinstance(texts, str)
            and not all(str(text) in question for text in texts)
        ):
            raise ValueError(
                f"{where}: {column} do not stand in the prompt: "
                "write them there, and answer by a letter"
            )


def find_answer(values: Mapping[str, object]) -> tuple[str, object]:
    """(column, value) of the answer.

    Data sets of verl hold it in reward_model, worked solutions in their last \\boxed{}.
    """
    for name in ("answer", "ground_truth"):
        if name in values:
            return name, values[name]
    model = values.get("reward_model")
    if isinstance(model, Mapping) and model.get("ground_truth") is not None:
        return "reward_model.ground_truth", model["ground_truth"]
    solution = values.get("solution")
    if isinstance(solution, str):
        solution = find_last_box(solution) or solution
    return "solution", solution


def choose_verifier(values: Mapping[str, object], answer: str, where: str) -> str:
    """The verifier that a row names, else the one of its columns, else that of its answer."""
    named = values.get("verifier")
    if named is not None:
        if not isinstance(named, str):
            raise ValueError(f"{where}: verifier ({named!r}) must be a name")
        return named
    for column, verifier in FACTS.items():
        if values.get(column) is not None:
            return verifier
    return select_verifier(answer)


def check_verifier(name: str, answer: str, facts: Mapping[str, object], where: str) -> None:
    """Raise ValueError for an unknown verifier, or one whose inputs the row lacks.

    Functions of the user are imported later, by the verifier process.
    """
    plain = name.removeprefix(ANSWER_PREFIX)
    names = (*verifier_table(), CODE)
    if plain not in names and "." not in plain and ":" not in plain:
        raise ValueError(
            f"{where}: verifier {name!r} is unknown: choose one of {', '.join(names)}, "
            "or package.module.function"
        )
    column = NEEDED.get(plain)
    if column is not None and column not in facts:
        raise ValueError(f"{where}: verifier {name!r} needs the column {column}")
    if not answer.strip() and not facts and plain not in WITHOUT_ANSWER:
        raise ValueError(f"{where}: verifier {name!r} needs an answer")


def validate_facts(facts: Mapping[str, object], where: str) -> dict[str, object]:
    """The columns of verifiers in their final form: `words` and `references` become lists.

    Raises:
        ValueError: a column has another form; the message names row, column and form.
    """
    valid: dict[str, Any] = dict(facts)
    for column in ("words", "references"):
        if column in valid:
            texts = [valid[column]] if isinstance(valid[column], str) else valid[column]
            if not _is_list(texts) or not all(
                isinstance(text, str) and text.strip() for text in texts
            ):
                raise ValueError(
                    f"{where}: {column} ({facts[column]!r}) must be a text or a list of texts"
                )
            valid[column] = list(texts)
    if "tests" in valid:
        try:
            read_tests(valid["tests"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if "schema" in valid:
        _check_schema(valid["schema"], where, "schema")
    if "tools" in valid:
        if not isinstance(valid["tools"], Mapping) or not valid["tools"]:
            raise ValueError(
                f"{where}: tools ({facts['tools']!r}) must map each tool "
                "to the schema of its arguments"
            )
        for tool, schema in valid["tools"].items():
            _check_schema(schema, where, f"tools.{tool}")
    if "call" in valid and (
        not isinstance(valid["call"], Mapping) or set(valid["call"]) != {"name", "arguments"}
    ):
        raise ValueError(
            f"{where}: call ({facts['call']!r}) must be an object with name and arguments"
        )
    return valid


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _check_schema(schema: object, where: str, column: str) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"{where}: {column} is no JSON schema: {error.message}") from None
    if not isinstance(schema, Mapping):
        raise ValueError(f"{where}: {column} ({schema!r}) must be an object")
