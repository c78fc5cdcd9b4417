"""The program of the verifier process: JSON lines on standard input, replies on standard output.

    request  {"verifier": "math_equal", "sample": {...}}
    reply    {"score": 1.0} or {"error": "..."}

It limits its own memory, writes no files, and loads no torch, so it starts in a tenth of a second.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from importlib import import_module
from typing import Any

from vla.rewards.sample import Sample, Verifier
from vla.rewards.verifiers import ANSWER_PREFIX, VERIFIERS, verifier_table


def find_verifier(name: str) -> Verifier:
    """Find a verifier by its name in `verifier_table`, or import `package.module:function`.

    A dot before the function does as well as a colon. `answer.NAME` applies the verifier NAME to
    the text between the answer tags.

    Raises:
        ValueError: No verifier has this name, or its module cannot be imported.
    """
    if name.startswith(ANSWER_PREFIX):
        from vla.rewards.verifiers.format_rewards import inside_answer

        return inside_answer(find_verifier(name.removeprefix(ANSWER_PREFIX)))
    # Our own names first: scanning the installed packages takes tens of milliseconds.
    target = VERIFIERS.get(name) or verifier_table().get(name, name)
    module, _, function = target.rpartition(":" if ":" in target else ".")
    if not module:
        raise ValueError(
            f"verifier {name!r} is unknown: choose one of {', '.join(verifier_table())}, "
            "or package.module:function"
        )
    try:
        verifier = getattr(import_module(module), function)
    except Exception as error:  # importing a user's module may raise anything
        message = describe_error(error)
        raise ValueError(f"verifier {name!r} cannot be imported: {message}") from error
    if not callable(verifier):
        raise ValueError(f"verifier {name!r} must be a function, this is {verifier!r}")
    return verifier


def describe_error(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def handle_request(request: dict[str, Any]) -> dict[str, object]:
    """Score a request; an exception of the verifier becomes an error, never a score."""
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
        return {"error": describe_error(error)}


def limit_resources(memory_bytes: int) -> None:
    """Limit the address space of this process, and write no core dumps."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    limit_resources(int(sys.argv[1]))
    requests = os.fdopen(os.dup(0))
    replies = os.fdopen(os.dup(1), "w")
    silent = os.open(os.devnull, os.O_RDWR)
    os.dup2(silent, 0)  # a verifier that reads standard input must not take the next request
    os.dup2(silent, 1)  # printed text must not be read as a reply
    for line in requests:
        replies.write(json.dumps(handle_request(json.loads(line))) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
