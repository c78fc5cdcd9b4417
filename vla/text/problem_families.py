"""Families of verifiable problems, each with the name of its verifier (`vla.rewards.verifiers`).

A family enumerates all its problems, or draws a fixed number of them, the same at every call.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence

from vla.data.rows import SUFFIXES, RowReader, is_source
from vla.spelling import did_you_mean
from vla.text.hash_split import digest
from vla.text.problem import Problem
from vla.text.problem_files import read_problems

DEFAULT_NUM_PROBLEMS = 2000
"""Problems of a generated family without `text.num_problems`."""
MAX_PROBLEMS = 20_000
"""Families with more problems than this are drawn instead of enumerated."""
ARITHMETIC = re.compile(r"(add|sub|mul)([1-4])")
WORD_FAMILIES = ("contains", "json", "sort3", "tool_call", "code")
ANSWER_TOKENS = 48
"""Most tokens of an answer that is not a number: a short sentence, a JSON object, a function."""
GYM_PREFIX = "gym."
"""Prefix of families of reasoning-gym: `gym.chain_sum` is its family chain_sum."""
WORDS = (
    "apple river chair cloud tiger bread music window garden pencil rabbit silver bridge"
    " candle forest hammer island jacket kitchen ladder market needle orange pocket rocket"
    " saddle tunnel valley wagon yellow basket copper desert engine feather guitar harbor"
    " insect jungle kettle lemon mirror night ocean paper queen robot summer table umbrella"
    " village winter"
)
NAMES = (
    "Ada Ben Cleo Dan Eva Finn Gina Hugo Iris Jack Kira Liam Mona Nils Olga Paul Rosa Sven Tara Zoe"
)


def make_family(
    name: str, num_problems: int | None, reader: RowReader | None = None
) -> list[Problem]:
    """At most `num_problems` distinct problems of a family, the same at every call.

    None means all rows of a file, and `DEFAULT_NUM_PROBLEMS` of a generated family. `reader` counts
    the rows of files.

    add1 ... mul4       arithmetic on numbers of so many digits; add2 and sub2 use 10 to 49, so that
                        sums have two digits
    contains            a sentence with a given word
    json                an object with two keys
    sort3               three numbers in order
    tool_call           a call of a named tool with an argument
    code                a function of one number, run on tests
    gym.FAMILY          a family of reasoning-gym
    FILE or owner/name  a file or hub data set (`problem_files`)

    Raises:
        ValueError: the name is unknown, a row is faulty, or reasoning-gym is not installed.
    """
    match = ARITHMETIC.fullmatch(name)
    count = num_problems or DEFAULT_NUM_PROBLEMS
    if match:
        problems = _arithmetic(name, match[1], int(match[2]), count)
    elif name in WORD_FAMILIES:
        problems = _WORD_PROBLEMS[name]()
    elif name.startswith(GYM_PREFIX):
        problems = _reasoning_gym(name, count)
    elif is_source(name):
        return _problems_of_file(name, num_problems, reader or RowReader())
    else:
        names = ", ".join(("add1 to add4", "sub1 to sub4", "mul1 to mul4", *WORD_FAMILIES))
        raise ValueError(
            f"family {name!r} is unknown: choose {names}, {GYM_PREFIX}NAME for a family of"
            f" reasoning-gym, or a file ({', '.join(SUFFIXES)})"
        )
    unique = {problem.question: problem for problem in problems}
    return sort_by_hash(list(unique.values()))[:count]


def _problems_of_file(name: str, num_problems: int | None, reader: RowReader) -> list[Problem]:
    problems = sort_by_hash(read_problems(name, None, reader))
    if num_problems is not None and num_problems < len(problems):
        reader.note(
            name, f"{num_problems} of {len(problems)} problems are used (text.num_problems)"
        )
    return problems[:num_problems]


def sort_by_hash(problems: Sequence[Problem]) -> list[Problem]:
    """The problems sorted by a hash of their question; a prefix is a fixed random subset."""
    return sorted(problems, key=lambda problem: digest(problem.question))


def max_answer_tokens(families: Sequence[str]) -> int:
    """Most tokens of an answer to any of these families.

    4 d + 5 for numbers of d digits: the model repeats the sum before its result, then stops. Longer
    completions cost time in every rollout without any use.
    """
    matches = [ARITHMETIC.fullmatch(name) for name in families]
    return max(4 * int(match[2]) + 5 if match else ANSWER_TOKENS for match in matches)


_OPERATION: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "add": ("+", lambda a, b: a + b),
    "sub": ("-", lambda a, b: a - b),
    "mul": ("*", lambda a, b: a * b),
}


def _arithmetic(family: str, operation: str, digits: int, num_problems: int) -> list[Problem]:
    """All pairs of numbers, or a fixed draw above `MAX_PROBLEMS`; differences are not negative."""
    lowest, highest = {1: (1, 9), 2: (10, 49)}.get(digits, (10 ** (digits - 1), 10**digits - 1))
    if operation == "mul" and digits == 1:
        lowest = 2
    count = highest - lowest + 1
    if count**2 <= MAX_PROBLEMS:
        pairs = [(a, b) for a in range(lowest, highest + 1) for b in range(lowest, highest + 1)]
    else:
        rng = random.Random(family)
        pairs = [
            (rng.randint(lowest, highest), rng.randint(lowest, highest))
            for _ in range(num_problems)
        ]
    if operation == "sub":
        pairs = [(a, b) for a, b in pairs if a >= b]
    sign, compute = _OPERATION[operation]
    return [
        Problem(
            f"What is {a} {sign} {b}? Answer with just the number.",
            str(compute(a, b)),
            "last_number",
            family,
            {"expression": f"{a} {sign} {b}"},
        )
        for a, b in pairs
    ]


def _contains() -> list[Problem]:
    return [
        Problem(
            f"Write one short sentence with the word {word}.",
            word,
            "contains",
            "contains",
            {"words": [word]},
        )
        for word in WORDS.split()
    ]


def _json() -> list[Problem]:
    problems = []
    for name in NAMES.split():
        for age in range(18, 58, 5):
            schema = {
                "type": "object",
                "required": ["name", "age"],
                "additionalProperties": False,
                "properties": {"name": {"const": name}, "age": {"const": age}},
            }
            question = (
                'Answer with a JSON object with the keys "name" and "age" '
                f"for {name}, who is {age}."
            )
            answer = json.dumps({"name": name, "age": age})
            problems.append(Problem(question, answer, "json_value", "json", {"schema": schema}))
    return problems


def _sort3() -> list[Problem]:
    rng = random.Random("sort3")
    problems = []
    for _ in range(3000):
        numbers = rng.sample(range(1, 100), 3)
        answer = ", ".join(map(str, sorted(numbers)))
        question = f"Sort the numbers {', '.join(map(str, numbers))} from smallest to largest."
        problems.append(Problem(question, answer, "contains", "sort3", {"words": [answer]}))
    return problems


def _tool_call() -> list[Problem]:
    tools = {"weather": "city", "define": "word", "translate": "text"}
    schemas = {
        tool: {
            "type": "object",
            "required": [argument],
            "properties": {argument: {"type": "string"}},
        }
        for tool, argument in tools.items()
    }
    problems = []
    for tool, argument in tools.items():
        for value in (*NAMES.split(), *WORDS.split()):
            call = {"name": tool, "arguments": {argument: value}}
            question = (
                f"Call the tool {tool} with {argument} set to {value}. A call looks like this:"
                ' <tool_call>{"name": "add", "arguments": {"number": "3"}}</tool_call>'
            )
            answer = f"<tool_call>{json.dumps(call)}</tool_call>"
            problems.append(
                Problem(
                    question, answer, "tool_call", "tool_call", {"tools": schemas, "call": call}
                )
            )
    return problems


def _code() -> list[Problem]:
    problems = []
    for sign, compute in _OPERATION.values():
        for number in range(2, 30):
            question = (
                f"Write a Python function f(x) that returns x {sign} {number}. "
                "Answer with code only."
            )
            tests = [
                {"call": f"f({x})", "output": repr(compute(x, number))} for x in (0, 1, 7, -12)
            ]
            answer = f"def f(x):\n    return x {sign} {number}"
            problems.append(Problem(question, answer, "code", "code", {"tests": tests}))
    return problems


_WORD_PROBLEMS: dict[str, Callable[[], list[Problem]]] = {
    "contains": _contains,
    "json": _json,
    "sort3": _sort3,
    "tool_call": _tool_call,
    "code": _code,
}


def _reasoning_gym(name: str, num_problems: int) -> list[Problem]:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # from one of its dependencies
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError(
            f"family {name!r} needs reasoning-gym: install the optional extra `reasoning`"
        ) from error
    family = name.removeprefix(GYM_PREFIX)
    if family not in DATASETS:
        hint = did_you_mean(family, DATASETS)
        raise ValueError(f"reasoning-gym has no family {family!r}{hint}")
    dataset = reasoning_gym.create_dataset(family, size=num_problems, seed=0)
    problems = []
    for entry in (dataset[i] for i in range(num_problems)):
        try:
            plain = json.loads(json.dumps(entry))
        except TypeError as error:
            raise ValueError(
                f"family {name!r} cannot be verified in a process of its own: {error}"
            ) from error
        facts = {"family": family, "entry": plain}
        problems.append(
            Problem(entry["question"], str(entry["answer"]), "reasoning_gym_score", name, facts)
        )
    return problems
