"""Why an episode failed, read off where the hand, the fingers and the objects were: a kind to
count, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

CLOSING = 0.85
"""Fingers close when the opening is below this share of its largest."""
AT_IT = 0.025
"""Metres from the tool's centre to a block within which closing fingers should hold it."""
FULFILLED = 0.5
"""A term of the task counts as reached above this."""
PLACED = 0.03
"""Metres from the middle of the place within which a block counts as there (`sim.tasks`)."""
DROPPED_FROM = 0.03
"""Metres above where it lay at the start: a block that is let go there falls."""
TOUCHED = 0.01
"""Metres a block has moved when it has been pushed."""


@runtime_checkable
class Moved(Protocol):
    """Where everything was, entries of T + 1 (`sim.replay.Replay`)."""

    hand: Any
    opening: Any
    held: Any
    targets: Any
    others: Any
    terms: Any
    success: bool


@dataclass(frozen=True)
class Reason:
    """`kind` is what failures are counted by, `text` says it of this one."""

    kind: str
    text: str


@dataclass(frozen=True)
class Course:
    """An episode as arrays: hand [T + 1, 3], opening [T + 1], held names, the named objects in the
    order of the instruction and other blocks {name: [T + 1, 3]}, and the step at which each term
    was fulfilled.
    """

    hand: np.ndarray
    opening: np.ndarray
    held: list[str | None]
    named: Mapping[str, np.ndarray]
    others: Mapping[str, np.ndarray]
    reached: Mapping[str, int]
    terms: frozenset[str]

    @property
    def block(self) -> str:
        """What the hand is to take, push or touch."""
        return next(iter(self.named))

    @property
    def place(self) -> str | None:
        """Where it is to go, if anywhere."""
        return next(iter([*self.named][1:]), None)

    def distance(self, name: str) -> np.ndarray:
        """Metres from the hand at every moment [T + 1]."""
        return np.linalg.norm(self.hand - {**self.named, **self.others}[name], axis=1)

    def gap(self, t: int) -> float:
        """Metres along the table from the block to its place."""
        assert self.place is not None
        return float(np.linalg.norm((self.named[self.block] - self.named[self.place])[t, :2]))


def reason(lived: Moved) -> Reason | None:
    """Why it failed; None for a success, and where nothing was named."""
    if lived.success or not lived.targets:
        return None
    course = Course(
        np.array(lived.hand),
        np.array(lived.opening),
        list(lived.held),
        {name: np.array(places) for name, places in lived.targets.items()},
        {name: np.array(places) for name, places in lived.others.items()},
        {
            last(n): int(np.argmax(np.array(v) > FULFILLED))
            for n, v in lived.terms.items()
            if max(v) > FULFILLED
        },
        frozenset(last(name) for name in lived.terms),
    )
    if "grasp" in course.terms:
        return never_held(course) if course.block not in course.held else held(course)
    return not_pushed(course) if "push" in course.terms else not_near(course)


def last(term: str) -> str:
    """The name of a term without its task's."""
    return term.rpartition("/")[2]


def never_held(course: Course) -> Reason:
    """The block was never in the hand."""
    block = course.block
    taken = next(((t, name) for t, name in enumerate(course.held) if name is not None), None)
    if taken is not None:
        return Reason(
            "took another object", f"It took the {taken[1]} at step {taken[0]}, not the {block}."
        )
    closed = course.opening < CLOSING * course.opening.max()
    closing = np.flatnonzero(closed[1:] & ~closed[:-1]) + 1
    if not len(closing):
        return not_near(course) if "reach" not in course.reached else near_and_open(course)
    t = int(min(closing, key=lambda t: course.distance(block)[t]))  # the best try of several
    nearest = min([block, *course.others], key=lambda name: course.distance(name)[t])
    where = f"The fingers closed at step {t}, {beside(course, t)} the {block}"
    if nearest != block and course.distance(nearest)[t] < 2 * AT_IT:
        return Reason("closed on another object", f"{where}, at the {nearest}.")
    if "reach" not in course.reached:
        return not_near(course)
    if course.distance(block)[t] > AT_IT:
        return Reason("closed the fingers beside it", f"{where}.")
    return Reason("closed on it, did not hold it", f"{where}, and did not hold it.")


def near_and_open(course: Course) -> Reason:
    t = int(np.argmin(course.distance(course.block)))
    return Reason(
        "never closed the fingers",
        f"The fingers never closed; nearest was step {t}, {beside(course, t)} the {course.block}.",
    )


def not_near(course: Course) -> Reason:
    """The hand was never where the named block is."""
    block, nearest = (
        course.block,
        {n: float(course.distance(n).min()) for n in [course.block, *course.others]},
    )
    t, other = int(np.argmin(course.distance(block))), min(nearest, key=lambda name: nearest[name])
    if other != block and nearest[other] < 2 * AT_IT:
        return Reason(
            "went to another object",
            f"The hand came within {cm(nearest[other])} of the {other}, and no nearer than {cm(nearest[block])} to the "
            f"{block}.",
        )
    return Reason(
        "never came near",
        f"The hand came no nearer to the {block} than {cm(nearest[block])}, at step {t}.",
    )


def held(course: Course) -> Reason:
    """The block was in the hand once."""
    block, place = course.block, course.place
    began = course.held.index(block)
    end = max(t for t, name in enumerate(course.held) if name == block)
    to_the_end = end == len(course.held) - 1
    if "lift" not in course.reached:
        told = "held it to the end" if to_the_end else f"let go at step {end + 1}"
        return Reason(
            "held it, did not lift it",
            f"It held the {block} from step {began}, {told}, and never lifted it.",
        )
    if place is None:
        return Reason(
            "lifted it, not high or long enough",
            f"It lifted the {block} and let go at step {end + 1}.",
        )
    gap, moment = course.gap(-1), "at the end"
    if to_the_end and gap < PLACED:
        return Reason(
            "did not let go", f"It still holds the {block} {moment}, {cm(gap)} from the {place}."
        )
    if to_the_end:
        return Reason(
            "did not get there in time",
            f"It still carries the {block} {moment}, {cm(gap)} from the {place}.",
        )
    if gap < PLACED:
        return Reason(
            "put it there, did not finish",
            f"The {block} lies {cm(gap)} from the {place}, {resting(course)}.",
        )
    height = float((course.named[block][end] - course.named[block][0])[2])
    if height > DROPPED_FROM:
        return Reason(
            "dropped it",
            f"It let the {block} fall from {cm(height)} at step {end + 1}: it lies {cm(gap)} from the {place}.",
        )
    return Reason(
        "put it down beside the place",
        f"It let go at step {end + 1}: the {block} lies {cm(gap)} from the {place}.",
    )


def resting(course: Course) -> str:
    """What may be missing when the block is where it should be."""
    away, opening = float(course.distance(course.block)[-1]), float(course.opening[-1])
    return f"the hand {cm(away)} from it, the fingers {cm(opening)} apart"


def not_pushed(course: Course) -> Reason:
    """The block is not where it was to be pushed."""
    block, place = course.block, course.place
    moved = {
        name: float(np.linalg.norm((p[-1] - p[0])[:2]))
        for name, p in {**course.named, **course.others}.items()
    }
    other = max(course.others, key=lambda name: moved[name], default=None)
    if moved[block] < TOUCHED and other is not None and moved[other] > TOUCHED:
        return Reason(
            "pushed another object",
            f"It pushed the {other} by {cm(moved[other])}, and not the {block}.",
        )
    if moved[block] < TOUCHED or place is None:
        return not_near(course)
    return Reason(
        "pushed it beside the place",
        f"It pushed the {block} by {cm(moved[block])}; that lies {cm(course.gap(-1))} from the {place}.",
    )


def beside(course: Course, t: int) -> str:
    """Where the hand was from the block."""
    x, y, z = course.hand[t] - course.named[course.block][t]
    return f"{cm(float(np.hypot(x, y)))} beside and {cm(abs(float(z)))} {'above' if z >= 0 else 'below'}"


def cm(metres: float) -> str:
    return f"{100 * metres:.1f} cm"
