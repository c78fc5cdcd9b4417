"""Code rewards: the program in a completion is run on tests in a sandbox, and what it answers is compared outside of
it.

The expected values never enter the sandbox, so a program cannot pass by reading them, by printing a verdict or by
leaving early.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vla.rewards.jail import Kind
from vla.rewards.sample import UNSCORABLE, Sample
from vla.rewards.sandbox import Limits, choose_jail, run_python

FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)

_CALL = """
import json as _json, sys as _sys
def _answer():
    with open("program.py") as file:
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


def program_of(completion: str) -> str:
    """The last fenced block of code, or the whole completion when there is none."""
    blocks = FENCE.findall(completion)
    return blocks[-1] if blocks else completion


def score_code(
    samples: Sequence[Sample], limits: Limits, num_parallel: int = 2, jail: Kind | None = None
) -> list[float]:
    """The share of tests that each sample's program passes. `facts["tests"]` is a list of

        {"call": "add(2, 3)", "output": "5"}        an expression in the program's names, and the repr of its value
        {"input": "2 3\\n", "output": "5"}          standard input, and standard output up to white space at line ends

    A program that runs too long, asks for too much memory or floods its output fails the test. NaN: there are no
    tests, or the sandbox itself failed, `limits` notwithstanding. Raises NoSandbox where programs cannot be confined.
    """
    kind = jail or choose_jail()
    with ThreadPoolExecutor(num_parallel) as threads:
        return list(threads.map(lambda sample: _score(sample, limits, kind), samples))


def _score(sample: Sample, limits: Limits, jail: Kind) -> float:
    tests: Sequence[Mapping[str, Any]] = sample.facts.get("tests", [])
    if not tests:
        return UNSCORABLE
    program = program_of(sample.completion)
    calls = [test for test in tests if "call" in test]
    passed = _passed_calls(program, calls, limits, jail) if calls else 0
    for test in tests:
        if "call" not in test:
            outcome = run_python(program, limits, test["input"].encode(), jail=jail)
            if not outcome.started:
                return UNSCORABLE
            same = _lines(outcome.output.decode(errors="replace")) == _lines(test["output"])
            passed += same and outcome.returncode == 0 and outcome.stopped is None
    return passed / len(tests)


def _passed_calls(program: str, tests: Sequence[Mapping[str, Any]], limits: Limits, jail: Kind) -> float:
    """How many calls gave the value expected; all of them run in one process, up to the first that never ends."""
    files = {"program.py": program, "calls.json": json.dumps([test["call"] for test in tests])}
    outcome = run_python(_CALL, limits, files=files, jail=jail)
    if not outcome.started:
        return UNSCORABLE
    values = []
    for line in outcome.output.decode(errors="replace").split("\n"):
        if line.startswith("\x02"):
            try:
                values.append(json.loads(line[1:]))
            except ValueError:
                break
    return float(sum(value == test["output"] for value, test in zip(values, tests, strict=False)))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
