"""Spoil settings at random: each is refused in a line or makes sense: `python scripts/benchmark.py
settings`.

Counted are tracebacks, checks of more than two seconds of processor time, and accepted oddities:
values of another kind, past every sane end, empty, or there twice. Every tenth goes through the
whole command line. It ends with 1 where anything is found.
"""

import argparse
import contextlib
import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.fuzz.draw import BASES, spoil_settings
from benchmarks.fuzz.oracle import oddities

from vla.config import freeze, load

SLOW_SECONDS = 2.0


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py settings", description=__doc__)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    counts, found = fuzz(BASES, options.count, options.seed)
    print("\n".join(found))
    print(", ".join(f"{number} {name}" for name, number in counts.items()))
    return int(bool(found))


def fuzz(names: Sequence[str], count: int, seed: int) -> tuple[Counter, list[str]]:
    """How many were accepted and refused, and a line for everything that should not be."""
    rng, counts = random.Random(seed), Counter(accepted=0, refused=0, tracebacks=0, slow=0, odd=0)
    bases = {base: load(base.split()).model_dump(mode="json") for base in names}
    found: list[str] = []
    for number in range(count):
        base = rng.choice(names)
        values, changes = spoil_settings(bases[base], rng)
        line = number % 10 == 0
        said = " ".join([base, *(f"{change.path}={change.after!r}" for change in changes)])
        check = (
            (lambda b=base, c=changes: through_command_line(b, c))
            if line
            else (lambda v=values: freeze(v))
        )
        outcome, seconds = run_check(check)
        counts["slow"] += seconds > SLOW_SECONDS
        counts[outcome if outcome in counts else "tracebacks"] += 1
        odd = oddities(changes) if outcome == "accepted" and not line else []
        counts["odd"] += bool(odd)
        found += [f"{said}: {what}" for what in odd]
        found += [f"{said}: {outcome}"] if outcome not in counts else []
        found += [f"{said}: {seconds:.1f} s"] if seconds > SLOW_SECONDS else []
    return counts, found


def run_check(check: Callable[[], object]) -> tuple[str, float]:
    """accepted, refused or the exception that came instead; and the seconds of the processor it
    took."""
    start = time.process_time()
    try:
        check()
        outcome = "accepted"
    except ValueError as error:
        outcome = (
            "refused"
            if type(error).__name__ == "ConfigError" and str(error).strip()
            else repr(error)
        )
    except Exception as error:
        outcome = repr(error)
    return outcome, time.process_time() - start


def through_command_line(base: str, changes: Sequence[Any]) -> None:
    """The same changes as a person types them."""
    typed = [
        f"{change.path}={json.dumps(change.after).replace('Infinity', 'inf')}" for change in changes
    ]
    with contextlib.redirect_stderr(io.StringIO()):
        load([*base.split(), *typed])
