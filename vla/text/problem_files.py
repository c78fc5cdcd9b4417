"""Verifiable problems of a user: a file or a hub data set with a prompt, an answer, and how it is
verified.

prompt (or question)   a text, or messages           answer     a text or a number; 0.5 or "... #### 42" (GSM8K); also
                                                                ground_truth, reward_model.ground_truth (verl), solution
verifier               its name; without one, by what else the row has:
tests                  code run in the sandbox       tools, call     a tool call      schema     JSON
words                  all must occur                references      for bleu, chrf, rouge_l
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
"""Columns that a verifier reads, and the verifier that a row with one gets when it names none."""
QUESTIONS = ("prompt", "question", "problem")
NEEDED = {CODE: "tests", "tool_call": "tools", "json_value": "schema"}
"""What a row must have beside an answer when it names one of these verifiers."""
WITHOUT_ANSWER = (*NEEDED, "contains", "bleu", "chrf", "rouge_l", "think_format", "think_tags")
"""Verifiers that can do without an answer."""


def read_problems(
    source: str, num_problems: int | None, reader: RowReader | None = None
) -> list[Problem]:
    """The problems of a source, at most `num_problems`; the source's name is the family. A question
    that stands in several rows with one answer is asked once.

    Raises ValueError naming the row and what is wrong with it: also a question that an earlier row
    answers otherwise.
    """
    reader, first = reader or RowReader(), dict[str, Problem]()

    def use(row: Row) -> Problem:
        problem = parse_problem(row, source)
        earlier = first.setdefault(normalize_words(problem.question), problem)
        if _answers(earlier) != _answers(problem):
            raise ValueError(
                f"{row.where}: asks what {earlier.where} asks, and gives another answer"
            )
        return problem

    used = reader.read(source, use)
    problems = list(first.values())
    if len(used) > len(problems):
        reader.note(
            source,
            f"{len(used) - len(problems)} rows ask again what an earlier row asks; each is asked once",
        )
    return problems[:num_problems]


def _answers(problem: Problem) -> tuple[Any, ...]:
    return problem.answer, problem.verifier, problem.facts


def parse_problem(row: Row, family: str) -> Problem:
    """A problem from a row of any of the kinds."""
    values, where = row.values, row.where
    column = next((name for name in QUESTIONS if name in values), None)
    if column is None:
        raise ValueError(f"{where}: has no text in the column prompt (or question)")
    messages = parse_prompt(values, where, column)
    check_choices(values, messages_to_text(messages), where)
    facts = {name: values[name] for name in (*FACTS, "call") if name in values}
    name, answer = find_answer(values)
    if answer is None and not facts:
        raise ValueError(
            f"{where}: nothing says which completion is right; needed is one of answer, {', '.join(FACTS)}"
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


def check_choices(values: Mapping[str, Any], question: str, where: str) -> None:
    """Refuse a row whose choices the model would not see: a column of its own is not shown."""
    for column in ("choices", "options"):
        choices = values.get(column)
        texts = choices.get("text", choices.values()) if isinstance(choices, Mapping) else choices
        if (
            isinstance(texts, Iterable)
            and not isinstance(texts, str)
            and not all(str(text) in question for text in texts)
        ):
            raise ValueError(
                f"{where}: {column} do not stand in the prompt: write them there, and answer by a letter"
            )


def find_answer(values: Mapping[str, Any]) -> tuple[str, Any]:
    """(column, what it holds) of the answer; verl has it in reward_model, a worked solution in its
    last \\boxed{}."""
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


def choose_verifier(values: Any, answer: str, where: str) -> str:
    """The verifier a row names, or the one that fits what it has: first its columns, then what the
    answer is."""
    named = values.get("verifier")
    if named is not None:
        if not isinstance(named, str):
            raise ValueError(f"{where}: verifier ({named!r}) must be a name")
        return named
    for column, verifier in FACTS.items():
        if values.get(column) is not None:
            return verifier
    return select_verifier(answer)


def check_verifier(name: str, answer: str, facts: Mapping[str, Any], where: str) -> None:
    """Refuse a verifier that does not exist, and one that the row lacks something for. Whether a
    function of the user's can be imported is seen by the process that will run it.
    """
    plain = name.removeprefix(ANSWER_PREFIX)
    known = (*verifier_table(), CODE)
    if plain not in known and "." not in plain and ":" not in plain:
        raise ValueError(
            f"{where}: verifier {name!r} is unknown: choose one of {', '.join(known)}, or package.module.function"
        )
    column = NEEDED.get(plain)
    if column is not None and column not in facts:
        raise ValueError(f"{where}: verifier {name!r} needs the column {column}")
    if not answer.strip() and not facts and plain not in WITHOUT_ANSWER:
        raise ValueError(f"{where}: verifier {name!r} needs an answer")


def validate_facts(facts: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The columns that verifiers read, each of the form that they read; a text is one word, or one
    reference.

    Raises ValueError naming the row, the column and the form.
    """
    found = dict(facts)
    for column in ("words", "references"):
        if column in found:
            texts = [found[column]] if isinstance(found[column], str) else found[column]
            if not _is_list(texts) or not all(
                isinstance(text, str) and text.strip() for text in texts
            ):
                raise ValueError(
                    f"{where}: {column} ({facts[column]!r}) must be a text or a list of texts"
                )
            found[column] = list(texts)
    if "tests" in found:
        try:
            read_tests(found["tests"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if "schema" in found:
        _check_schema(found["schema"], where, "schema")
    if "tools" in found:
        if not isinstance(found["tools"], Mapping) or not found["tools"]:
            raise ValueError(
                f"{where}: tools ({facts['tools']!r}) must map each tool to the schema of its arguments"
            )
        for tool, schema in found["tools"].items():
            _check_schema(schema, where, f"tools.{tool}")
    if "call" in found and (
        not isinstance(found["call"], Mapping) or set(found["call"]) != {"name", "arguments"}
    ):
        raise ValueError(
            f"{where}: call ({facts['call']!r}) must be an object with name and arguments"
        )
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _check_schema(schema: Any, where: str, column: str) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"{where}: {column} is no JSON schema: {error.message}") from None
    if not isinstance(schema, Mapping):
        raise ValueError(f"{where}: {column} ({schema!r}) must be an object")
