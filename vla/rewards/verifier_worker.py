"""The process in which verifiers run: one request a line on standard input, one answer a line on
what was standard output.

    request  {"verifier": "math_equal", "sample": {...}}     answer  {"score": 1.0} or {"error": "..."}

It limits its own memory, writes no files, and loads no torch, so it starts in a tenth of a second.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import sys
from typing import Any

from vla.rewards.sample import Sample, Verifier

MODULES = {
    "match": ("exact", "contains", "last_number", "only_number"),
    "forms": ("choice", "date", "quantity"),
    "structure": ("think_format", "think_tags", "json_value", "tool_call"),
    "overlap": ("bleu", "chrf", "rouge_l"),
    "libraries": ("math_equal", "reasoning_gym_score"),
}
"""The verifiers that have a name of their own, by module; any other is `package.module.function` (a
colon before the function is as good).
"""
NAMES = tuple(name for names in MODULES.values() for name in names)
INSIDE_ANSWER = "answer."
"""`answer.last_number` looks between the answer tags only."""


def find_verifier(name: str) -> Verifier:
    """The verifier of this name.

    Raises ValueError for a name that is neither known nor importable.
    """
    if name.startswith(INSIDE_ANSWER):
        from vla.rewards.verifiers.format_rewards import inside_answer

        return inside_answer(find_verifier(name.removeprefix(INSIDE_ANSWER)))
    module = next(
        (f"vla.rewards.{module}" for module, names in MODULES.items() if name in names), None
    )
    function = name
    if module is None:
        module, _, function = name.rpartition(":" if ":" in name else ".")
        if not module:
            raise ValueError(
                f"verifier {name!r} is unknown: choose one of {', '.join(NAMES)}, or package.module.function"
            )
    try:
        verifier = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(f"verifier {name!r} cannot be imported: {_described(error)}") from error
    if not callable(verifier):
        raise ValueError(f"verifier {name!r} is no function but {verifier!r}")
    return verifier


def _described(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What to answer a request; an exception of the verifier becomes an error, never a score."""
    try:
        verify = find_verifier(request["verifier"])
        if request.get("warm_up"):
            return {"score": None}
        score = verify(Sample(**request["sample"]))
        if score is None or math.isinf(score := float(score)):
            return {"error": f"gave {score}, a score is a number, and finite"}
        return {"score": score}
    except MemoryError:
        return {"error": "out of memory"}
    except Exception as error:
        return {"error": _described(error)}


def limit_resources(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    limit_resources(int(sys.argv[1]))
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    silent = os.open(os.devnull, os.O_RDWR)
    os.dup2(silent, 0)  # a verifier that reads must not take the next request
    os.dup2(silent, 1)  # a verifier that prints must not be taken for an answer
    for line in requests:
        replies.write(json.dumps(answer(json.loads(line))) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
