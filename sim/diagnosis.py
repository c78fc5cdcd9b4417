"""Reasons of failed episodes with their sentences: the steps that a task's `diagnose` composes.

A task composes its `diagnose` of these steps in the order of its motion: each answers with a
reason, or None where the episode got past it. `Reason.kind` is counted over episodes, `Reason.text`
describes the single one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

CLOSING_SHARE = 0.85
"""Fingers close when the opening is below this share of its largest."""
GRASP_DISTANCE = 0.025
"""Metres from the tcp to a block within which closing fingers should hold it."""
REACHED = 0.5
"""A reward term counts as reached above this value."""
AT_PLACE = 0.03
"""Metres along the table from the place's centre within which a block counts as there."""
DROP_HEIGHT = 0.03
"""Metres above its start: a block that is let go higher than this falls."""
MOVED_DISTANCE = 0.01
"""Metres along the table that a pushed block has moved at least."""


@dataclass(frozen=True)
class Reason:
    """Why an episode failed: the `kind` that failures are counted by, and a sentence about it."""

    kind: str
    text: str


@dataclass(frozen=True)
class EpisodeTrace:
    """An episode as arrays over its T + 1 moments, the start included.

    Attributes:
        hand: measured tcp position [T + 1, 3], metres.
        opening: distance between the fingers [T + 1], metres.
        held: name of the object in the hand, or None [T + 1].
        named: positions [T + 1, 3] of the objects that the instruction names, in its order.
        others: positions [T + 1, 3] of the other blocks.
        reached: the moment at which each reward term passed `REACHED`, where it did.
    """

    hand: np.ndarray
    opening: np.ndarray
    held: list[str | None]
    named: Mapping[str, np.ndarray]
    others: Mapping[str, np.ndarray]
    reached: Mapping[str, int]

    @property
    def block(self) -> str:
        """The object that the hand is to take, push or touch: the first one named."""
        return next(iter(self.named))

    @property
    def place(self) -> str:
        """The object that the block is to go to: the second one named."""
        return list(self.named)[1]

    @property
    def end(self) -> int:
        """The last moment T."""
        return len(self.held) - 1

    def distance(self, name: str) -> np.ndarray:
        """Distance [T + 1] from the tcp to an object, metres."""
        return np.linalg.norm(self.hand - {**self.named, **self.others}[name], axis=1)

    def gap(self, moment: int) -> float:
        """Distance along the table from the block to its place, metres."""
        offset = self.named[self.block][moment] - self.named[self.place][moment]
        return float(np.linalg.norm(offset[:2]))

    def held_until(self) -> int:
        """The last moment at which the block was in the hand."""
        return max(moment for moment, name in enumerate(self.held) if name == self.block)


def not_grasped(trace: EpisodeTrace) -> Reason | None:
    """The reason that the block was never in the hand, or None where it was."""
    block = trace.block
    if block in trace.held:
        return None
    taken = next(((t, name) for t, name in enumerate(trace.held) if name is not None), None)
    if taken is not None:
        return Reason(
            "took another object", f"It took the {taken[1]} at step {taken[0]}, not the {block}."
        )
    closed = trace.opening < CLOSING_SHARE * trace.opening.max()
    closings = np.flatnonzero(closed[1:] & ~closed[:-1]) + 1
    if not len(closings):
        return not_reached(trace) if "reach" not in trace.reached else not_closed(trace)
    best = int(min(closings, key=lambda moment: trace.distance(block)[moment]))
    nearest = min([block, *trace.others], key=lambda name: trace.distance(name)[best])
    where = f"The fingers closed at step {best}, {offset_text(trace, best)} the {block}"
    if nearest != block and trace.distance(nearest)[best] < 2 * GRASP_DISTANCE:
        return Reason("closed on another object", f"{where}, at the {nearest}.")
    if "reach" not in trace.reached:
        return not_reached(trace)
    if trace.distance(block)[best] > GRASP_DISTANCE:
        return Reason("closed the fingers beside it", f"{where}.")
    return Reason("closed on it, did not hold it", f"{where}, and did not hold it.")


def not_closed(trace: EpisodeTrace) -> Reason:
    """The fingers stayed open although the hand was near the block."""
    moment = int(np.argmin(trace.distance(trace.block)))
    where = f"{offset_text(trace, moment)} the {trace.block}"
    return Reason(
        "never closed the fingers",
        f"The fingers never closed; nearest was step {moment}, {where}.",
    )


def not_reached(trace: EpisodeTrace) -> Reason:
    """The hand was never where the block is."""
    block = trace.block
    nearest = {name: float(trace.distance(name).min()) for name in [block, *trace.others]}
    moment = int(np.argmin(trace.distance(block)))
    other = min(nearest, key=lambda name: nearest[name])
    if other != block and nearest[other] < 2 * GRASP_DISTANCE:
        return Reason(
            "went to another object",
            f"The hand came within {centimetres(nearest[other])} of the {other}, "
            f"and no nearer than {centimetres(nearest[block])} to the {block}.",
        )
    return Reason(
        "never came near",
        f"The hand came no nearer to the {block} than {centimetres(nearest[block])}, "
        f"at step {moment}.",
    )


def not_lifted(trace: EpisodeTrace) -> Reason | None:
    """The block was held and stayed down; None where it was lifted. Asks for a held block."""
    if "lift" in trace.reached:
        return None
    begin = trace.held.index(trace.block)
    last = trace.held_until()
    then = "held it to the end" if last == trace.end else f"let go at step {last + 1}"
    return Reason(
        "held it, did not lift it",
        f"It held the {trace.block} from step {begin}, {then}, and never lifted it.",
    )


def not_placed(trace: EpisodeTrace, within: float = AT_PLACE) -> Reason:
    """The lifted block does not rest released at its place, within `within` metres of its
    centre."""
    if trace.held_until() < trace.end:
        return not_put_down(trace, within)
    gap = trace.gap(-1)
    where = f"{centimetres(gap)} from the {trace.place}"
    if gap < within:
        return Reason("did not let go", f"It still holds the {trace.block} at the end, {where}.")
    return not_there_in_time(trace)


def not_there_in_time(trace: EpisodeTrace) -> Reason:
    """The block is still carried at the end."""
    where = f"{centimetres(trace.gap(-1))} from the {trace.place}"
    return Reason(
        "did not get there in time", f"It still carries the {trace.block} at the end, {where}."
    )


def not_put_down(trace: EpisodeTrace, within: float = AT_PLACE) -> Reason:
    """The block was let go: at its place, in the air, or beside its place."""
    block = trace.block
    place = trace.place
    last = trace.held_until()
    gap = trace.gap(-1)
    where = f"lies {centimetres(gap)} from the {place}"
    if gap < within:
        hand = centimetres(float(trace.distance(block)[-1]))
        fingers = centimetres(float(trace.opening[-1]))
        return Reason(
            "put it there, did not finish",
            f"The {block} {where}, the hand {hand} from it, the fingers {fingers} apart.",
        )
    height = float((trace.named[block][last] - trace.named[block][0])[2])
    if height > DROP_HEIGHT:
        return Reason(
            "dropped it",
            f"It let the {block} fall from {centimetres(height)} at step {last + 1}: it {where}.",
        )
    return Reason(
        "put it down beside the place", f"It let go at step {last + 1}: the {block} {where}."
    )


def not_pushed(trace: EpisodeTrace) -> Reason:
    """The block does not lie where it was to be pushed."""
    block = trace.block
    moved = {
        name: float(np.linalg.norm((positions[-1] - positions[0])[:2]))
        for name, positions in {**trace.named, **trace.others}.items()
    }
    other = max(trace.others, key=lambda name: moved[name], default=None)
    if moved[block] >= MOVED_DISTANCE:
        return Reason(
            "pushed it beside the place",
            f"It pushed the {block} by {centimetres(moved[block])}; "
            f"that lies {centimetres(trace.gap(-1))} from the {trace.place}.",
        )
    if other is not None and moved[other] > MOVED_DISTANCE:
        return Reason(
            "pushed another object",
            f"It pushed the {other} by {centimetres(moved[other])}, and not the {block}.",
        )
    return not_reached(trace)


def offset_text(trace: EpisodeTrace, moment: int) -> str:
    """Where the hand was from the block: centimetres beside, and above or below."""
    x, y, z = trace.hand[moment] - trace.named[trace.block][moment]
    beside = centimetres(float(np.hypot(x, y)))
    up = centimetres(abs(float(z)))
    return f"{beside} beside and {up} {'above' if z >= 0 else 'below'}"


def centimetres(metres: float) -> str:
    """A length as text."""
    return f"{100 * metres:.1f} cm"
