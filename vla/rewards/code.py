"""Code rewards: the program of a completion runs on tests in a sandbox; its output is compared
outside.

The expected values never enter the sandbox, so a program cannot pass by reading them, by printing a
verdict or by leaving early.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vla.rewards.code_blocks import CodeBlock, find_code_blocks
from vla.rewards.sample import UNSCORABLE, Sample
from vla.rewards.sandbox.jail import JailKind
from vla.rewards.sandbox.run_python import ProgramLimits, ProgramResult, choose_jail, run_python

_CALL = """
import json as _json, sys as _sys
def _answer():
    with open("program.py", "rb") as file:
        source = file.read()
    scope = {"__name__": "program"}
    exec(compile(source, "program.py", "exec"), scope)
    with open("calls.json") as file:
        calls = _json.load(file)
    for call in calls:
        try:
            value = repr(eval(call, scope))
        except Exception as error:
            value = "raised " + type(error).__name__
        _sys.stdout.write("\\n\\x02" + _json.dumps(value) + "\\n")
        _sys.stdout.flush()
_answer()
"""


@dataclass(frozen=True)
class CodeTest:
    """One test of a program: an expression (`call`) and the repr of its value, or standard `input`
    and `output`."""

    call: str | None
    input: str
    output: str


def read_tests(tests: object) -> list[CodeTest]:
    """Read the tests of a row in the form of `score_code`; a key with the value None is absent.

    Raises:
        ValueError: The tests have another form. The message names the test; the reader of the row
            adds file and line.
    """
    if not isinstance(tests, Sequence) or isinstance(tests, str | bytes) or not tests:
        raise ValueError(
            f"tests ({_short(tests)}) must be a list of at least one {{call or input, output}}"
        )
    return [
        _read_test(test, f"test {number} ({_short(test)})")
        for number, test in enumerate(tests, start=1)
    ]


def _read_test(test: object, where: str) -> CodeTest:
    if not isinstance(test, Mapping):
        raise ValueError(f'{where} must be a mapping, e.g. {{"call": "add(1, 2)", "output": "3"}}')
    fields = {name: value for name, value in test.items() if value is not None}
    if set(fields) not in ({"call", "output"}, {"input", "output"}):
        raise ValueError(f"{where} must have output and one of call, input, and nothing else")
    for name, value in fields.items():
        if not isinstance(value, str):
            raise ValueError(
                f"{where}: {name} must be a text; write the value as it is printed, "
                f"e.g. {str(value)!r}"
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{where}: {name} has half of a surrogate pair, which no text can hold"
            ) from None
    if "call" in fields:
        _check_expression(fields["call"], where)
    return CodeTest(fields.get("call"), fields.get("input", ""), fields["output"])


def _check_expression(call: str, where: str) -> None:
    try:
        _parse(call.lstrip(" \t"), "eval")
    except _UNREADABLE as error:
        raise ValueError(f"{where}: call is no Python expression: {error}") from None


_UNREADABLE = (SyntaxError, ValueError, MemoryError, RecursionError)


def _parse(text: str, mode: str) -> ast.AST:
    with warnings.catch_warnings(action="ignore"):
        return compile(text, "text", mode, ast.PyCF_ONLY_AST)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def extract_program(completion: str) -> str:
    """Extract the program of a completion.

    It is the last fenced block with a label of Python, or without a label and with a statement.
    (A block of mere values is output.) The fallbacks are the last block without a label, the last
    block, and the whole completion.
    """
    blocks = find_code_blocks(completion)
    python = [
        block for block in blocks if re.fullmatch("i?py.*", block.label) or _is_program(block)
    ]
    unlabelled = [block for block in blocks if not block.label]
    for candidates in (python, unlabelled, blocks):
        if candidates:
            return candidates[-1].content
    return completion


def _is_program(block: CodeBlock) -> bool:
    try:
        module = _parse(block.content, "exec")
    except _UNREADABLE:
        return False
    statements = module.body if isinstance(module, ast.Module) else []
    return not block.label and any(not isinstance(statement, ast.Expr) for statement in statements)


class _Unscorable(Exception):
    """The sandbox failed, so the program has no score; the message is the reason."""


def score_code(
    samples: Sequence[Sample],
    limits: ProgramLimits,
    num_parallel: int = 2,
    jail: JailKind | None = None,
    failures: dict[str, int] | None = None,
) -> list[float]:
    """The share of tests that each sample's program passes.

    `facts["tests"]` is a list (see `read_tests`) of

        {"call": "add(2, 3)", "output": "5"}     an expression in the program's names, and its repr
        {"input": "2 3\\n", "output": "5"}       standard input and output

    White space at line ends of an output does not count. A program that exceeds a limit of time,
    memory or output fails the test. A score is NaN, and counted in `failures` by reason, where the
    tests cannot be read or the sandbox itself failed.

    Raises:
        SandboxUnavailable: This machine cannot confine programs.
    """
    kind = jail or choose_jail()
    programs = [extract_program(sample.completion) for sample in samples]
    tests = [_read_sample_tests(sample) for sample in samples]
    with ThreadPoolExecutor(num_parallel) as threads:
        results = list(
            threads.map(lambda program, own: _score(program, own, limits, kind), programs, tests)
        )
    for result in results:
        if isinstance(result, str) and failures is not None:
            failures[result] = failures.get(result, 0) + 1
    return [UNSCORABLE if isinstance(result, str) else result for result in results]


def _read_sample_tests(sample: Sample) -> list[CodeTest] | str:
    try:
        return read_tests(sample.facts.get("tests"))
    except ValueError as error:
        return f"code: {error}"


def _score(
    program: str, tests: list[CodeTest] | str, limits: ProgramLimits, jail: JailKind
) -> float | str:
    """The share of tests passed, or the reason why there is no score."""
    if isinstance(tests, str):
        return tests
    calls = [test for test in tests if test.call is not None]
    try:
        passed = _count_passed_calls(program, calls, limits, jail) if calls else 0
        passed += sum(
            _passes_input(program, test, limits, jail) for test in tests if test.call is None
        )
    except _Unscorable as reason:
        return f"code: the sandbox failed: {reason}"
    return passed / len(tests)


def _run(
    source: str,
    limits: ProgramLimits,
    jail: JailKind,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
) -> ProgramResult:
    result = run_python(source, limits, stdin.encode(), files, jail)
    if not result.started:
        raise _Unscorable(result.errors.decode(errors="replace").split("\n")[0][:200])
    return result


def _passes_input(program: str, test: CodeTest, limits: ProgramLimits, jail: JailKind) -> bool:
    result = _run(program, limits, jail, stdin=test.input)
    same = _lines(result.output.decode(errors="replace")) == _lines(test.output)
    return same and result.returncode == 0 and result.stopped is None


def _count_passed_calls(
    program: str, tests: Sequence[CodeTest], limits: ProgramLimits, jail: JailKind
) -> int:
    """Count the calls that gave the expected value; they run in one process, up to the first that
    never ends."""
    files = {"program.py": program, "calls.json": json.dumps([test.call for test in tests])}
    result = _run(_CALL, limits, jail, files=files)
    values = []
    for line in result.output.decode(errors="replace").split("\n"):
        if line.startswith("\x02"):
            try:
                values.append(json.loads(line[1:]))
            except (ValueError, RecursionError):
                break
    return sum(value == test.output for value, test in zip(values, tests, strict=False))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
