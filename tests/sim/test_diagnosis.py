"""Why an episode failed, on episodes laid by hand: every kind has one that shows it."""

import numpy as np
import pytest

from sim.randomize import DEFAULT_RANDOMIZATION
from sim.replay import Replay, failure_reason
from sim.tasks import load_task

STEPS = 6
BLOCK, OTHER, PAD = "red cube", "blue cube", "green disc"


def episode(
    hand=None,
    opening=None,
    held=None,
    block=None,
    other=None,
    reached=(),
    prefix="",
    success=False,
):
    """The hand stays high above the red cube at the origin; a blue cube is 20 cm to the side, a
    disc 30 cm ahead."""
    still = np.zeros((STEPS, 3))
    return Replay(
        instruction="",
        shapes=[],
        hand=list(np.tile([0.0, 0.0, 0.3], (STEPS, 1)) if hand is None else hand),
        opening=list(np.full(STEPS, 0.08) if opening is None else opening),
        held=held or [None] * STEPS,
        targets={
            BLOCK: list(still if block is None else block),
            PAD: list(np.tile([0.3, 0.0, 0.0], (STEPS, 1))),
        },
        others={OTHER: list(np.tile([0.0, 0.2, 0.0], (STEPS, 1)) if other is None else other)},
        terms={
            f"{prefix}{name}": [0.0, *[1.0 if name in reached else 0.2] * (STEPS - 1)]
            for name in ("reach", "grasp", "lift", "place", "push")
        },
        success=success,
    )


def reason(task, replay):
    return failure_reason(replay, load_task(task)(DEFAULT_RANDOMIZATION))


def at(*place):
    """The same place from the second step on; the first is high above."""
    return np.array([[0.0, 0.0, 0.3], *[place] * (STEPS - 1)])


def moved(*place):
    """A block that lies at the origin first and there in the end."""
    return np.array([[0.0, 0.0, 0.0]] * 3 + [list(place)] * (STEPS - 3))


CLOSING = np.array([0.08, 0.08, 0.04, 0.04, 0.04, 0.04])
IN_HAND = [None, None, BLOCK, BLOCK, None, None]
TO_THE_END = [None, None, BLOCK, BLOCK, BLOCK, BLOCK]
UP = ("reach", "grasp", "lift")


@pytest.mark.parametrize(
    ("task", "replay", "kind", "text"),
    [
        (
            "pick_place",
            episode(),
            "never came near",
            "no nearer to the red cube than 30.0 cm, at step 0",
        ),
        (
            "pick_place",
            episode(hand=at(0, 0.21, 0)),
            "went to another object",
            "within 1.0 cm of the blue cube, and no nearer than",
        ),
        (
            "pick_place",
            episode(hand=at(0.03, 0.04, 0.02), reached=("reach",)),
            "never closed the fingers",
            "nearest was step 1, 5.0 cm beside and 2.0 cm above the red cube",
        ),
        (
            "pick_place",
            episode(hand=at(0.03, 0, -0.01), opening=CLOSING, reached=("reach",)),
            "closed the fingers beside it",
            "The fingers closed at step 2, 3.0 cm beside and 1.0 cm below the red cube.",
        ),
        (  # of several tries the best is told
            "pick_place",
            episode(
                hand=np.array(
                    [[0, 0, 0.3], [0.2, 0, 0], [0.2, 0, 0], [0.05, 0, 0], [0.05, 0, 0], [0.2, 0, 0]]
                ),
                opening=np.array([0.08, 0.08, 0.05, 0.08, 0.05, 0.05]),
                reached=("reach",),
            ),
            "closed the fingers beside it",
            "closed at step 4, 5.0 cm beside",
        ),
        (
            "pick_place",
            episode(hand=at(0, 0.2, 0), opening=CLOSING),
            "closed on another object",
            "at the blue cube",
        ),
        (
            "pick_place",
            episode(hand=at(0.01, 0, 0), opening=CLOSING, reached=("reach",)),
            "closed on it, did not hold it",
            "1.0 cm beside and 0.0 cm above the red cube, and did not hold it",
        ),
        (
            "pick_place",
            episode(held=[None, None, OTHER, OTHER, None, None]),
            "took another object",
            "It took the blue cube at step 2, not the red cube.",
        ),
        (
            "pick_place",
            episode(held=IN_HAND, reached=("reach", "grasp")),
            "held it, did not lift it",
            "from step 2, let go at step 4, and never lifted it",
        ),
        (
            "pick_place",
            episode(held=TO_THE_END, block=moved(0.29, 0, 0.05), reached=UP),
            "did not let go",
            "still holds the red cube at the end, 1.0 cm from the green disc",
        ),
        (
            "pick_place",
            episode(held=TO_THE_END, block=moved(0.2, 0, 0.05), reached=UP),
            "did not get there in time",
            "at the end, 10.0 cm from the green disc",
        ),
        (
            "pick_place",
            episode(
                held=IN_HAND,
                block=np.array([[0, 0, 0]] * 3 + [[0.1, 0, 0.08]] + [[0.1, 0, 0]] * 2),
                reached=UP,
            ),
            "dropped it",
            "let the red cube fall from 8.0 cm at step 4: it lies 20.0 cm from the green disc",
        ),
        (
            "pick_place",
            episode(held=IN_HAND, block=moved(0.25, 0, 0.01), reached=UP),
            "put it down beside the place",
            "let go at step 4: the red cube lies 5.0 cm from the green disc",
        ),
        (
            "pick_place",
            episode(held=IN_HAND, block=moved(0.29, 0, 0), hand=at(0.29, 0, 0.04), reached=UP),
            "put it there, did not finish",
            "lies 1.0 cm from the green disc, the hand 4.0 cm from it, the fingers 8.0 cm apart",
        ),
        (
            "push",
            episode(block=moved(0.2, 0, 0)),
            "pushed it beside the place",
            "pushed the red cube by 20.0 cm; that lies 10.0 cm from the green disc",
        ),
        (
            "push",
            episode(other=moved(0, 0.05, 0)),
            "pushed another object",
            "pushed the blue cube by 5.0 cm, and not the red cube",
        ),
        ("reach", episode(), "never came near", "30.0 cm"),
    ],
)
def test_every_kind_of_failure_is_named(task, replay, kind, text):
    found = reason(task, replay)
    assert found is not None
    assert found.kind == kind
    assert text in found.text


def test_tasks_that_grasp_share_their_steps():
    beside = {"hand": at(0.03, 0, -0.01), "opening": CLOSING, "reached": ("reach",)}
    for task in ("lift", "pick_place", "stack"):
        assert reason(task, episode(**beside)).kind == "closed the fingers beside it"
    lifted = reason("lift", episode(held=IN_HAND, reached=UP))
    assert lifted.kind == "lifted it, not high or long enough"
    assert lifted.text == "It lifted the red cube and let go at step 4."


def test_a_success_has_no_reason_and_a_mixture_names_its_terms_by_task():
    assert reason("pick_place", episode(success=True)) is None
    found = reason(
        "pick_place", episode(hand=at(0.03, 0, 0), reached=("reach",), prefix="pick_place/")
    )
    assert found is not None
    assert found.kind == "never closed the fingers"
