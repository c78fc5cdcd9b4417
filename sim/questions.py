"""Questions about a scene, with answers from the ground truth: colour, position, number, grasp.

A small vision-language model learns perception from them before it learns to act; PaLM-E and RT-2
mix such questions with robot data. Positions are vectors in the robot's base frame, from the
gripper or from the middle of the workspace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from sim.instructions import SHAPES, InstructionTemplate
from sim.robots.rotations import wrap_angle
from sim.scenes.objects import BLOCK_SHAPES, COLORS, PAD_SHAPES
from sim.task import ObjectFacts, SceneFacts
from sim.tasks import load_task
from sim.workspace import CENTER

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Question(NamedTuple):
    """A question and its answer: words, or numbers with the unit "m" or "rad"."""

    text: str
    answer: str | tuple[float, ...]
    unit: str = ""


def where_from_gripper(facts: SceneFacts, rng: np.random.Generator) -> Question:
    thing = _any_object(facts, rng)
    offset = np.subtract(thing.position, facts.hand_position)
    return Question(f"where is the {thing.name}?", tuple(map(float, offset)), "m")


def where_on_table(facts: SceneFacts, rng: np.random.Generator) -> Question:
    thing = _any_object(facts, rng)
    offset = np.subtract(thing.position, (*CENTER, 0.0))
    return Question(f"where on the table is the {thing.name}?", tuple(map(float, offset)), "m")


def turned(facts: SceneFacts, rng: np.random.Generator) -> Question:
    """The rotation from the gripper to a block; a cube looks the same every quarter turn."""
    blocks = [o for o in facts.objects if o.kind == "block" and BLOCK_SHAPES[o.shape].symmetry > 0]
    if not blocks:
        return where_from_gripper(facts, rng)
    block = blocks[rng.integers(len(blocks))]
    angle = wrap_angle(
        np.array(block.yaw - facts.hand_yaw), np.array(BLOCK_SHAPES[block.shape].symmetry)
    )
    return Question(f"how far is the {block.name} turned?", (float(angle),), "rad")


def held(facts: SceneFacts, rng: np.random.Generator) -> Question:
    blocks = [o for o in facts.objects if o.kind == "block"]
    block = blocks[rng.integers(len(blocks))]
    return Question(f"is the {block.name} grasped?", "yes" if block.grasped else "no")


def what_is_held(facts: SceneFacts, rng: np.random.Generator) -> Question:
    return Question(
        "what is in the gripper?",
        "nothing" if facts.grasped is None else facts.objects[facts.grasped].name,
    )


def color_of(facts: SceneFacts, rng: np.random.Generator) -> Question:
    thing = _any_object(facts, rng)
    same = {o.color for o in facts.objects if o.shape == thing.shape}
    if len(same) > 1:  # two of this shape: the question would have two answers
        return is_there(facts, rng)
    return Question(f"what colour is the {thing.shape}?", thing.color)


def is_there(facts: SceneFacts, rng: np.random.Generator) -> Question:
    shapes = [*BLOCK_SHAPES, *PAD_SHAPES]
    name = f"{rng.choice(list(COLORS))} {rng.choice(shapes)}"
    if rng.random() < 0.5:
        name = _any_object(facts, rng).name
    return Question(
        f"is there a {name}?", "yes" if any(o.name == name for o in facts.objects) else "no"
    )


def how_many(facts: SceneFacts, rng: np.random.Generator) -> Question:
    color = str(rng.choice(list(COLORS)))
    if rng.random() < 0.7:
        color = _any_object(facts, rng).color
    count = sum(o.color == color for o in facts.objects)
    return Question(f"how many {color} things are there?", NUMBER_WORDS[count])


def done(facts: SceneFacts, rng: np.random.Generator) -> Question:
    return Question(f"is this done: {facts.instruction}?", "yes" if facts.success else "no")


KINDS: dict[str, Callable[[SceneFacts, np.random.Generator], Question]] = {
    "where_from_gripper": where_from_gripper,
    "where_on_table": where_on_table,
    "turned": turned,
    "held": held,
    "what_is_held": what_is_held,
    "color_of": color_of,
    "is_there": is_there,
    "how_many": how_many,
    "done": done,
}


def ask(
    facts: SceneFacts, rng: np.random.Generator, count: int, weights: dict[str, float]
) -> list[Question]:
    """`count` questions about a scene, their kinds drawn by weight.

    Raises a ValueError for an unknown kind, or weights without a positive sum.
    """
    unknown = set(weights) - set(KINDS)
    if unknown:
        raise ValueError(
            f"unknown kinds of question {sorted(unknown)}; known are {', '.join(KINDS)}"
        )
    total = sum(weights.values())
    if total <= 0:
        raise ValueError(
            f"the weights of the questions add up to {total}: give at least one kind a positive "
            "weight"
        )
    names = list(weights)
    drawn = rng.choice(len(names), size=count, p=np.array([weights[n] for n in names]) / total)
    return [KINDS[names[i]](facts, rng) for i in drawn]


PHRASES = {
    "where on": "where_on_table",
    "where is": "where_from_gripper",
    "turned": "turned",
    "grasped": "held",
    "in the gripper": "what_is_held",
    "what colour": "color_of",
    "is there": "is_there",
    "how many": "how_many",
    "is this done": "done",
}


def question_kind(text: str) -> str:
    """The kind of a question, from its words."""
    return next(kind for phrase, kind in PHRASES.items() if phrase in text)


class DetectedObject(NamedTuple):
    """An object in a picture.

    Attributes:
        right, down: its centre in the picture, as fractions.
        kind: index into `OBJECT_KINDS`.
        place: its position (metres) in a frame that the picture alone determines: from the middle
            of the workspace for a fixed camera, in the gripper's frame for the wrist camera.
        heading: cosine and sine of its yaw in that frame, times the number of rotations that look
            the same; (0, 0) where all do.
    """

    right: float
    down: float
    kind: int
    place: tuple[float, float, float]
    heading: tuple[float, float]


OBJECT_KINDS = tuple(
    f"{color} {shape}" for color in COLORS for shape in (*BLOCK_SHAPES, *PAD_SHAPES)
)
"""Every kind of object: colour and shape."""


def detected_objects(facts: SceneFacts, camera: str) -> list[DetectedObject]:
    """The objects whose centre is in the picture of `camera`."""
    cos = np.cos(facts.hand_yaw)
    sin = np.sin(facts.hand_yaw)
    found = []
    for thing in facts.objects:
        pixel = thing.pixels.get(camera)
        if pixel is None:
            continue
        if camera == "wrist":
            x, y, z = np.subtract(thing.position, facts.hand_position)
            x, y = cos * x + sin * y, cos * y - sin * x
            yaw = thing.yaw - facts.hand_yaw
        else:
            x, y, z = np.subtract(thing.position, (*CENTER, 0.0))
            yaw = thing.yaw
        place = (float(x), float(y), float(z))
        found.append(
            DetectedObject(*pixel, OBJECT_KINDS.index(thing.name), place, _heading(thing, yaw))
        )
    return found


def _heading(thing: ObjectFacts, yaw: float) -> tuple[float, float]:
    symmetry = BLOCK_SHAPES[thing.shape].symmetry if thing.kind == "block" else 0.0
    if symmetry == 0:
        return 0.0, 0.0
    angle = 2 * np.pi * yaw / symmetry
    return float(np.cos(angle)), float(np.sin(angle))


def all_texts(tasks: Sequence[str] = ("pick_place",)) -> list[str]:
    """Texts with every word of the questions, answers and instructions of `tasks`.

    They train a tokenizer.
    """
    templates = [load_task(task).template for task in tasks]
    texts = ["yes", "no", "nothing", *NUMBER_WORDS]
    for color in COLORS:
        texts.append(f"how many {color} things are there?")
        for shape in (*BLOCK_SHAPES, *PAD_SHAPES):
            name = f"{color} {shape}"
            texts += [
                f"where is the {name}?",
                f"where on the table is the {name}?",
                f"is there a {name}?",
                name,
            ]
            texts += [
                f"is the {name} grasped?",
                f"how far is the {name} turned?",
                "what is in the gripper?",
            ]
            texts += [f"what colour is the {shape}?", f"a {name}"]
        for other in COLORS:
            for block, template in product(BLOCK_SHAPES, templates):
                sentences = _sentences(template, f"{color} {block}", other)
                texts += [*sentences, *(f"is this done: {sentence}?" for sentence in sentences)]
    return texts


def _sentences(template: InstructionTemplate, first: str, color: str) -> list[str]:
    """The instructions about the object called `first`, with a second one of `color` where
    named."""
    if len(template.kinds) == 1:
        return [template.fill((first,))] if first.startswith(color) else []
    return [template.fill((first, f"{color} {shape}")) for shape in SHAPES[template.kinds[1]]]


def _any_object(facts: SceneFacts, rng: np.random.Generator) -> ObjectFacts:
    return facts.objects[rng.integers(len(facts.objects))]


PLAN_NUMBERS = (
    *("block_x", "block_y", "block_z", "pad_x", "pad_y", "pad_z"),
    *("turn", "held", "heading_cos", "heading_sin"),
)
"""The numbers that an instruction comes down to.

Vectors (metres) from the gripper to the named block, and to the pad or block that it goes to (the
first again where only one is named); the yaw left to turn (rad / 5); held (0.3) or not (-0.3); the
block's heading from the gripper's (see `DetectedObject`) times 0.25. The heading has no jump where
a turn either way is as long.
"""
TURN_SCALE = 0.2
HELD = 0.3
HEADING_SCALE = 0.25


class Plan(NamedTuple):
    """An instruction with the numbers that it comes down to in a scene.

    Attributes:
        text: the instruction.
        numbers: see `PLAN_NUMBERS`.
        mentions: per named object the text up to its name, its position from the gripper (metres)
            and its heading from the gripper's (see `DetectedObject`).
    """

    text: str
    numbers: tuple[float, ...]
    mentions: tuple[tuple[str, tuple[float, ...], tuple[float, float]], ...]


def plan(facts: SceneFacts, rng: np.random.Generator) -> Plan:
    """The task's instruction about objects drawn from the scene, with its numbers.

    The first object of a kind is drawn most often, since episodes hold and carry it.
    """
    chosen: list[ObjectFacts] = []
    for kind in facts.template.kinds:
        others = [o for o in facts.objects if o.kind == kind and o not in chosen]
        chosen.append(others[int(len(others) * rng.random() ** 2)])
    names = [thing.name for thing in chosen]
    block = chosen[0]
    places = [
        tuple(map(float, np.subtract(thing.position, facts.hand_position)))
        for thing in (block, chosen[-1])
    ]
    symmetry = BLOCK_SHAPES[block.shape].symmetry
    turn = (
        float(wrap_angle(np.array(block.yaw - facts.hand_yaw), symmetry)) if symmetry > 0 else 0.0
    )
    turned = [_heading(thing, thing.yaw - facts.hand_yaw) for thing in (block, chosen[-1])]
    heading = (HEADING_SCALE * part for part in turned[0])
    numbers = (
        *places[0],
        *places[1],
        TURN_SCALE * turn,
        HELD if block.grasped else -HELD,
        *heading,
    )
    prefixes = [facts.template.prefix_through(names, i) for i in (0, len(names) - 1)]
    mentions = tuple(zip(prefixes, places, turned, strict=True))
    return Plan(facts.template.fill(names), numbers, mentions)
