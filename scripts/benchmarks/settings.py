"""Fuzzing of settings: every spoiled setting is refused in one line or is valid.

    python scripts/benchmark.py settings

It counts tracebacks, checks of more than two CPU seconds, and accepted oddities: values of another
kind, out of range, empty or repeated. Every tenth sample goes through the whole command line. The
exit code is 1 where a fault was found.
"""

import argparse
import contextlib
import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.fuzz.draw import BASES, Change, spoil_settings
from benchmarks.fuzz.oracle import oddities

from vla.config import freeze, load

SLOW_SECONDS = 2.0


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py settings", description=__doc__)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    counts, faults = fuzz(BASES, options.count, options.seed)
    print("\n".join(faults))
    print(", ".join(f"{number} {name}" for name, number in counts.items()))
    return int(bool(faults))


def fuzz(names: Sequence[str], count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Count the outcomes of `count` samples, with a line for every fault."""
    rng = random.Random(seed)
    counts = Counter(accepted=0, refused=0, tracebacks=0, slow=0, odd=0)
    bases = {base: load(base.split()).model_dump(mode="json") for base in names}
    faults: list[str] = []
    for number in range(count):
        base = rng.choice(names)
        values, changes = spoil_settings(bases[base], rng)
        by_command_line = number % 10 == 0
        line = " ".join([base, *(f"{change.path}={change.after!r}" for change in changes)])
        check = (
            partial(load_command_line, base, changes)
            if by_command_line
            else partial(freeze, values)
        )
        verdict, seconds = run_check(check)
        counts["slow"] += seconds > SLOW_SECONDS
        counts[verdict if verdict in counts else "tracebacks"] += 1
        # The command line parses text, so a change may arrive as another value.
        odd = oddities(changes) if verdict == "accepted" and not by_command_line else []
        counts["odd"] += bool(odd)
        faults += [f"{line}: {oddity}" for oddity in odd]
        faults += [f"{line}: {verdict}"] if verdict not in counts else []
        faults += [f"{line}: {seconds:.1f} s"] if seconds > SLOW_SECONDS else []
    return counts, faults


def run_check(check: Callable[[], object]) -> tuple[str, float]:
    """Run a check: "accepted", "refused" or the repr of another exception, and its CPU seconds."""
    start = time.process_time()
    try:
        check()
        verdict = "accepted"
    except ValueError as error:
        verdict = (
            "refused"
            if type(error).__name__ == "ConfigError" and str(error).strip()
            else repr(error)
        )
    except Exception as error:
        verdict = repr(error)
    return verdict, time.process_time() - start


def load_command_line(base: str, changes: Sequence[Change]) -> None:
    """Load the changes as settings of a command line."""
    arguments = [
        f"{change.path}={json.dumps(change.after).replace('Infinity', 'inf')}" for change in changes
    ]
    with contextlib.redirect_stderr(io.StringIO()):
        load([*base.split(), *arguments])
