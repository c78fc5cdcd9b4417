"""How every task is asked: its sentence, what kinds of objects it names, and other words for the
same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.scenes.objects import BLOCK_SHAPES, COLORS, PAD_SHAPES

if TYPE_CHECKING:
    from sim.looks import Looks

SHAPES = {"block": tuple(BLOCK_SHAPES), "pad": tuple(PAD_SHAPES)}
COLOR_NAMES = tuple(COLORS)


@dataclass(frozen=True)
class Wording:
    """A task in words.

    Attributes:
        sentence: what demonstrations say, with {first} and, where there is one, {second} for the objects' names.
        kinds: "block" or "pad" for the first and the second object.
        paraphrases: other words for it, which no training start uses: for judging what a policy reads.
    """

    sentence: str
    kinds: tuple[str, ...]
    paraphrases: tuple[str, ...]

    def say(self, names: Sequence[str], phrasing: int = 0) -> str:
        """The instruction about the objects called `names`; phrasing 0 is the sentence, the others
        the paraphrases."""
        words = (self.sentence, *self.paraphrases)[phrasing]
        return words.format(**dict(zip(("first", "second"), names, strict=False)))

    def up_to(self, names: Sequence[str], which: int) -> str:
        """The instruction's beginning, up to the end of the name of object `which`."""
        beginning = self.sentence.split(("{first}", "{second}")[which])[0]
        return beginning.format(first=names[0]) + names[which]

    def objects(self, num_blocks: int) -> tuple[int, ...]:
        """Indices of the named objects in a list of all blocks, then all pads: the first ones of
        their kinds."""
        return tuple(
            self.kinds[:i].count(kind) + (num_blocks if kind == "pad" else 0)
            for i, kind in enumerate(self.kinds)
        )


WORDINGS: dict[str, Wording] = {
    "pick_place": Wording(
        "put the {first} on the {second}",
        ("block", "pad"),
        (
            "place the {first} onto the {second}",
            "move the {first} over to the {second}",
            "the {first} belongs on the {second}",
            "set the {first} down on the {second}",
        ),
    ),
    "reach": Wording(
        "reach the {first}",
        ("block",),
        ("go to the {first}", "move above the {first}", "hover over the {first}"),
    ),
    "push": Wording(
        "push the {first} to the {second}",
        ("block", "pad"),
        ("shove the {first} onto the {second}", "slide the {first} onto the {second}"),
    ),
    "lift": Wording(
        "lift the {first}",
        ("block",),
        ("pick up the {first}", "raise the {first}", "take the {first} off the table"),
    ),
    "stack": Wording(
        "stack the {first} on the {second}",
        ("block", "block"),
        ("put the {first} on top of the {second}", "the {first} goes onto the {second}"),
    ),
}
"""By the name of the task."""


def instructions(
    looks: Looks, ids: np.ndarray, wording: Wording, phrasing: np.ndarray
) -> list[str]:
    """What the environments `ids` [n] are asked, in the words number `phrasing` [n]."""
    columns = {
        "block": (looks.block_color, looks.block_shape),
        "pad": (looks.pad_color, looks.pad_shape),
    }
    names = []
    for i, kind in enumerate(wording.kinds):
        color, shape = (column[ids, wording.kinds[:i].count(kind)] for column in columns[kind])
        names.append(
            [f"{COLOR_NAMES[c]} {SHAPES[kind][s]}" for c, s in zip(color, shape, strict=True)]
        )
    rows = zip(*names, strict=True)
    return [wording.say(row, int(words)) for row, words in zip(rows, phrasing, strict=True)]
