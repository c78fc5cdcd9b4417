"""The oracle of the settings fuzzer: accepted values of another kind, out of range, empty or
repeated."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.fuzz.draw import Change

SHARES = re.compile(
    r"gamma|lambda|discount|share|fraction|ema_decay|probability|dropout|top_p|smoothing"
)
RATES = re.compile(r"learning_rate$")
SEEDS = re.compile(r"(seed|first|last)$")
LARGEST = 1e8
SMALLEST = 1e-12
LARGEST_SEED = 2**63 - 1


def oddities(changes: Sequence[Change]) -> list[str]:
    """A line for each accepted change that is odd."""
    last = {change.path: change for change in changes}
    reasons = [(change, reason) for change in last.values() if (reason := explain_oddity(change))]
    return [
        f"{change.path}={change.after!r} (was {change.before!r}): {reason}"
        for change, reason in reasons
    ]


def explain_oddity(change: Change) -> str | None:
    """The reason why a change should be refused; None where it is valid."""
    path = change.path
    before = change.before
    after = change.after
    if before is ... and not re.search(r"\.(make|randomization|reward|rewards)\.", path):
        return "no such setting"
    if isinstance(after, bool) != isinstance(before, bool) and before not in (None, ...):
        return "a boolean is no number" if isinstance(after, bool) else "no boolean"
    if isinstance(after, str) and isinstance(before, int | float):
        return "a text for a number"
    if isinstance(after, str) and not after.strip():
        return "empty"
    if (
        isinstance(after, list)
        and len({str(item) for item in after}) < len(after)
        and "stem_channels" not in path
    ):
        return "there twice"
    if isinstance(after, int | float) and not isinstance(after, bool):
        return explain_odd_number(path, after)
    return None


def explain_odd_number(path: str, value: float) -> str | None:
    """The reason why a number is out of the range of its setting; None where it is valid."""
    if re.search(r"\.(make|randomization)\.", path):
        return None
    if SEEDS.search(path):
        return None if 0 <= value <= LARGEST_SEED else "no seed"
    if value != value or abs(value) > LARGEST:
        return "too large"
    if 0 < abs(value) < SMALLEST:
        return "too near to 0"
    if SHARES.search(path) and not 0 <= value <= 1:
        return "no share"
    if RATES.search(path) and not 0 < value <= 1:
        return "no learning rate"
    if path.endswith("temperature") and not 0.01 <= value <= 10:
        return "no temperature"
    return None
