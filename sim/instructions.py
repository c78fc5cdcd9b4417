"""Instruction templates: names of objects filled into the sentences that stand in `sim.tasks`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.scenes.objects import BLOCK_SHAPES, COLORS, PAD_SHAPES

if TYPE_CHECKING:
    from sim.appearance import Looks

SHAPES = {"block": tuple(BLOCK_SHAPES), "pad": tuple(PAD_SHAPES)}
COLOR_NAMES = tuple(COLORS)


@dataclass(frozen=True)
class InstructionTemplate:
    """A task's sentence, with places for the names of its objects.

    Attributes:
        sentence: used by demonstrations, with {first} and, for two objects, {second}.
        kinds: "block" or "pad" for the first and the second object.
        paraphrases: other sentences for the task. No training start uses them: they test whether
            a policy understands words it was not trained on.
    """

    sentence: str
    kinds: tuple[str, ...]
    paraphrases: tuple[str, ...]

    def fill(self, names: Sequence[str], phrasing: int = 0) -> str:
        """The instruction about the objects called `names`.

        Phrasing 0 is the sentence, 1 and up the paraphrases.
        """
        sentence = (self.sentence, *self.paraphrases)[phrasing]
        return sentence.format(**dict(zip(("first", "second"), names, strict=False)))

    def prefix_through(self, names: Sequence[str], index: int) -> str:
        """The sentence from its start through the name of the object `index`."""
        placeholder = ("{first}", "{second}")[index]
        beginning = self.sentence.split(placeholder)[0]
        return beginning.format(first=names[0]) + names[index]

    def objects(self, num_blocks: int) -> tuple[int, ...]:
        """Indices of the named objects in a list of all blocks, then all pads.

        The named objects are the first ones of their kinds.
        """
        return tuple(
            self.kinds[:i].count(kind) + (num_blocks if kind == "pad" else 0)
            for i, kind in enumerate(self.kinds)
        )


def instruction_texts(
    looks: Looks, ids: np.ndarray, template: InstructionTemplate, phrasing: np.ndarray
) -> list[str]:
    """The instructions of the environments `ids` [n], in the phrasings `phrasing` [n]."""
    columns = {
        "block": (looks.block_color, looks.block_shape),
        "pad": (looks.pad_color, looks.pad_shape),
    }
    names = []
    for i, kind in enumerate(template.kinds):
        colors, shapes = columns[kind]
        index = template.kinds[:i].count(kind)
        names.append(
            [
                f"{COLOR_NAMES[color]} {SHAPES[kind][shape]}"
                for color, shape in zip(colors[ids, index], shapes[ids, index], strict=True)
            ]
        )
    rows = zip(*names, strict=True)
    return [template.fill(row, int(words)) for row, words in zip(rows, phrasing, strict=True)]
