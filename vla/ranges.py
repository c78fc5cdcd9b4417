"""Value types of settings: numbers with ranges, names, lists of names.

The limit of a count is the capacity of a large machine; the limit of a rate or weight is floating
point. A boolean is no number, and a number is no boolean.
"""

from __future__ import annotations

import re
from math import isqrt
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints


def to_integer(value: object) -> object:
    """Convert a float without a fraction to an integer: 1e3 is 1000."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_not_tiny(value: float) -> float:
    """Refuse a value too near to 0 to have an effect.

    Raises:
        ValueError: between 0 and `SMALLEST` in magnitude.
    """
    if 0 < abs(value) < SMALLEST:
        raise ValueError(
            f"is too near to 0 to have an effect: give 0 where it may be 0, or {SMALLEST} and above"
        )
    return value


def check_unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a list with a repeated name.

    Raises:
        ValueError: with the first repeated name.
    """
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise ValueError(f"names {repeated[0]} twice: leave one of them out")
    return names


def check_url(value: str) -> str:
    """Refuse an address that is none of HTTP.

    Raises:
        ValueError: it does not begin with http:// or https://, and a host.
    """
    if not re.match("https?://[^/]", value):
        raise ValueError("must be an address, as http://localhost:8000")
    return value


def check_device_name(value: str) -> str:
    """Refuse a name that is no device, on any machine.

    Raises:
        ValueError: for another name.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ValueError("must be auto, cpu, cuda, cuda:N (a number) or mps")
    return value


SMALLEST = 1e-12
LARGEST = 1_000_000
MAX_SEED = 2**63 - 2
"""The largest start or seed: one above it must still be a 64-bit integer."""

Integer = Annotated[int, BeforeValidator(to_integer)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST), AfterValidator(check_not_tiny)]
Positive = Annotated[float, Field(gt=0, le=LARGEST), AfterValidator(check_not_tiny)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST), AfterValidator(check_not_tiny)]
Fraction = Annotated[float, Field(ge=0, le=1), AfterValidator(check_not_tiny)]
Share = Annotated[float, Field(gt=0, lt=1), AfterValidator(check_not_tiny)]
"""Strictly between 0 and 1."""
BelowOne = Annotated[float, Field(ge=0, lt=1), AfterValidator(check_not_tiny)]
BelowHalf = Annotated[float, Field(ge=0, lt=0.5), AfterValidator(check_not_tiny)]
"""Probability that a label is wrong; below one half, where labels carry no information."""
PositiveFraction = Annotated[float, Field(gt=0, le=1), AfterValidator(check_not_tiny)]
LearningRate = Annotated[float, Field(gt=0, le=1), AfterValidator(check_not_tiny)]
WeightDecay = Annotated[float, Field(ge=0, le=10), AfterValidator(check_not_tiny)]
Temperature = Annotated[float, Field(gt=0, ge=0.01, le=10)]
Seconds = Annotated[float, Field(gt=0, le=10**8), AfterValidator(check_not_tiny)]

OnBadRow = Literal["error", "skip"]
"""Treatment of an unusable row of data: stop the run, or leave the row out and count it."""

Count = Annotated[Integer, Field(ge=1, le=10**8)]
CountOrZero = Annotated[Integer, Field(ge=0, le=10**8)]
Rows = Annotated[Integer, Field(ge=1, le=10**5)]
"""Number of rows processed together: a batch, the starts of an iteration, environments."""
SmallCount = Annotated[Integer, Field(ge=1, le=10**4)]
SmallCountOrZero = Annotated[Integer, Field(ge=0, le=10**4)]
Size = Annotated[Integer, Field(ge=1, le=16384)]
"""A dimension of a model."""
Depth = Annotated[Integer, Field(ge=1, le=256)]
EvenSize = Annotated[Integer, Field(ge=2, le=16384, multiple_of=2)]
Steps = Annotated[Integer, Field(ge=1, le=10**5)]
"""Steps of an episode or of a chain, and tokens of a text."""
Tokens = Annotated[Integer, Field(ge=16, le=10**6)]
"""Most tokens of a text; a chat template alone takes about ten."""
InstructionLength = Annotated[Integer, Field(ge=4, le=10**4)]
"""Length of an instruction in tokens."""
ActionTokens = Annotated[Integer, Field(ge=2, le=256)]
"""Number of tokens of an action code; they take the vocabulary's last ids."""
Bins = Annotated[Integer, Field(ge=2, le=10**4)]
WorkerCount = Annotated[Integer, Field(ge=0, le=10**4)]
"""Number of processes that collect rollouts; 0: none besides the run's own."""
UpdatesAhead = Annotated[Integer, Field(ge=0, le=1)]
"""Updates by which the collection of rollouts is ahead of learning."""
NumThreads = Annotated[Integer, Field(ge=0, le=1024)]
Seed = Annotated[Integer, Field(ge=0, le=MAX_SEED)]

Name = Annotated[str, StringConstraints(pattern=r"\S")]
"""A name; never empty, as an unset shell variable would be."""
Url = Annotated[Name, AfterValidator(check_url)]
DeviceName = Annotated[Name, AfterValidator(check_device_name)]
Names = Annotated[tuple[Name, ...], AfterValidator(check_unique)]
NonEmptyNames = Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(check_unique)]
Weights = Annotated[dict[Name, Number], Field(min_length=1)]
"""{name of a reward: its weight}."""

Schedule = Literal["cosine", "linear", "constant"]
"""Course of a learning rate."""


def nearest_divisor(target: int, number: int) -> int:
    """The divisor of `number` nearest to `target`; the larger of two equally near ones.

    Divisors come in pairs d, number / d, so sqrt(number) steps suffice.
    """
    small = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    return min(small + [number // d for d in small], key=lambda d: (abs(d - target), -d))
