"""Every kind of question on scenes made by hand, where the answer can be read off."""

import numpy as np
import pytest

import sim
from sim.questions import (
    KINDS,
    NUMBER_WORDS,
    OBJECT_KINDS,
    PLAN_NUMBERS,
    all_texts,
    ask,
    detected_objects,
    plan,
    question_kind,
)
from sim.task import ObjectFacts, SceneFacts
from sim.tasks.pick_place import PickPlace
from sim.workspace import CENTER


def thing(kind, color, shape, position, yaw=0.0, grasped=False, pixels=None):
    role = "target" if (color, shape) in {("red", "cube"), ("blue", "disc")} else "distractor"
    return ObjectFacts(
        kind, color, shape, role, position, yaw, grasped, pixels or {"front": None, "wrist": None}
    )


def scene(held=None, success=False, hand_yaw=0.0, **blocks):
    """A red cube, a yellow one, a blue disc and a red square."""
    objects = (
        thing(
            "block",
            "red",
            "cube",
            (0.55, 0.10, 0.02),
            yaw=blocks.get("yaw", 0.3),
            grasped=held == 0,
        ),
        thing("block", "yellow", "cube", (0.45, -0.05, 0.02), grasped=held == 1),
        thing("pad", "blue", "disc", (0.50, 0.0, 0.0)),
        thing("pad", "red", "square", (0.60, -0.1, 0.0)),
    )
    return SceneFacts(
        objects,
        (0.5, 0.05, 0.2),
        hand_yaw,
        0.04,
        held,
        "put the red cube on the blue disc",
        success,
        PickPlace.template,
    )


class Chosen:
    """A generator that draws what the test says: indices, choices and shares in their order."""

    def __init__(self, integers=(), choices=(), shares=()):
        self._integers, self._choices, self._shares = list(integers), list(choices), list(shares)

    def integers(self, high):
        value = self._integers.pop(0)
        assert value < high
        return value

    def choice(self, options):
        value = self._choices.pop(0)
        assert value in options
        return value

    def random(self):
        return self._shares.pop(0)


def answer(kind, facts, rng):
    question = KINDS[kind](facts, rng)
    return question.text, question.answer, question.unit


def test_where():
    text, place, unit = answer("where_from_gripper", scene(), Chosen([1]))
    assert (text, unit) == ("where is the yellow cube?", "m")
    assert place == pytest.approx((-0.05, -0.10, -0.18))  # 0.45 - 0.5, -0.05 - 0.05, 0.02 - 0.2
    text, place, unit = answer("where_on_table", scene(), Chosen([0]))
    assert (text, unit) == ("where on the table is the red cube?", "m")
    assert CENTER == (0.5, 0.0)
    assert place == pytest.approx((0.05, 0.10, 0.02))


@pytest.mark.parametrize(
    ("yaw", "hand", "expected"),
    [(0.3, 0.1, 0.2), (0.3, -0.6, 0.9 - np.pi / 2), (1.5, 0.0, 1.5 - np.pi / 2)],
)
def test_turned_is_the_shorter_way_to_a_side_that_looks_the_same(yaw, hand, expected):
    text, (angle,), unit = answer("turned", scene(yaw=yaw, hand_yaw=hand), Chosen([0]))
    assert (text, unit) == ("how far is the red cube turned?", "rad")
    assert angle == pytest.approx(expected)


def test_a_scene_of_round_blocks_is_asked_for_places_instead_of_turns():
    facts = scene()
    facts = SceneFacts(
        (thing("block", "red", "cylinder", (0.5, 0, 0)),), *list(vars(facts).values())[1:]
    )
    assert answer("turned", facts, Chosen([0]))[0] == "where is the red cylinder?"


def test_held():
    assert answer("held", scene(), Chosen([0])) == ("is the red cube grasped?", "no", "")
    assert answer("held", scene(held=1), Chosen([0]))[1] == "no"
    assert answer("held", scene(held=1), Chosen([1])) == ("is the yellow cube grasped?", "yes", "")
    assert answer("what_is_held", scene(), Chosen()) == ("what is in the gripper?", "nothing", "")
    assert answer("what_is_held", scene(held=1), Chosen())[1] == "yellow cube"


def test_a_colour_is_asked_of_a_shape_that_stands_there_in_one_colour():
    assert answer("color_of", scene(), Chosen([2])) == ("what colour is the disc?", "blue", "")
    # Two cubes of two colours: another question is asked, here about the first object.
    fallback = Chosen([0, 1], ["green", "brick"], [0.2])
    assert answer("color_of", scene(), fallback) == ("is there a yellow cube?", "yes", "")


def test_is_there():
    assert answer("is_there", scene(), Chosen([], ["green", "disc"], [0.9])) == (
        "is there a green disc?",
        "no",
        "",
    )
    assert answer("is_there", scene(), Chosen([], ["blue", "disc"], [0.9]))[1] == "yes"


def test_how_many():
    assert answer("how_many", scene(), Chosen([0], ["green"], [0.1])) == (
        "how many red things are there?",
        "two",
        "",
    )
    assert answer("how_many", scene(), Chosen([], ["green"], [0.9])) == (
        "how many green things are there?",
        "zero",
        "",
    )


def test_done():
    assert answer("done", scene(), Chosen()) == (
        "is this done: put the red cube on the blue disc?",
        "no",
        "",
    )
    assert answer("done", scene(success=True), Chosen())[1] == "yes"


def test_a_plan_is_what_an_instruction_comes_down_to():
    facts = scene(held=0, hand_yaw=0.1)
    found = plan(
        facts, Chosen(shares=[0.7, 0.8])
    )  # squared, times two: the first block, the second pad
    numbers = dict(zip(PLAN_NUMBERS, found.numbers, strict=True))
    assert found.text == "put the red cube on the red square"
    assert [numbers[f"block_{axis}"] for axis in "xyz"] == pytest.approx([0.05, 0.05, -0.18])
    assert [numbers[f"pad_{axis}"] for axis in "xyz"] == pytest.approx([0.1, -0.15, -0.2])
    assert numbers["turn"] == pytest.approx(0.2 / 5)  # 0.3 - 0.1 rad, in fifths
    assert numbers["held"] == 0.3
    # A cube looks the same after a quarter turn: heading 4 x .2 rad, cos .8 = .6967, sin .8 =
    # .7174, times a quarter.
    assert (numbers["heading_cos"], numbers["heading_sin"]) == pytest.approx(
        (0.17418, 0.17934), abs=1e-5
    )
    assert plan(facts, Chosen(shares=[0.71, 0.0])).numbers[PLAN_NUMBERS.index("held")] == -0.3


def test_detected_objects_are_what_a_picture_alone_can_tell():
    seen = {"front": (0.2, 0.7), "wrist": (0.5, 0.4)}
    objects = (
        thing("block", "red", "cube", (0.5, 0.15, 0.02), pixels=seen),
        thing("pad", "blue", "disc", (0.5, 0, 0)),
    )
    facts = SceneFacts(
        objects, (0.5, 0.05, 0.2), np.pi / 2, 0.04, None, "", False, PickPlace.template
    )
    (front,) = detected_objects(facts, "front")
    assert (front.right, front.down, OBJECT_KINDS[front.kind]) == (0.2, 0.7, "red cube")
    assert front.place == pytest.approx((0.0, 0.15, 0.02))
    # The hand is turned a quarter: what lies 0.1 along the table's y lies 0.1 along the hand's x.
    (wrist,) = detected_objects(facts, "wrist")
    assert wrist.place == pytest.approx((0.1, 0.0, -0.18))


def test_a_cube_turned_by_a_quarter_has_the_same_heading():
    seen = {"front": (0.2, 0.7), "wrist": (0.5, 0.4)}

    def headings(shape, yaw, hand_yaw):
        objects = (thing("block", "red", shape, (0.5, 0.15, 0.02), yaw=yaw, pixels=seen),)
        facts = SceneFacts(
            objects, (0.5, 0.05, 0.2), hand_yaw, 0.04, None, "", False, PickPlace.template
        )
        return [detected_objects(facts, camera)[0].heading for camera in ("front", "wrist")]

    # A cube looks the same four times a turn: an eighth of a turn is half a period.
    front, wrist = headings("cube", np.pi / 4, np.pi / 8)
    assert front == pytest.approx((-1.0, 0.0))
    assert wrist == pytest.approx((0.0, 1.0))
    assert headings("cube", 3 * np.pi / 4, np.pi / 8) == [
        pytest.approx(front),
        pytest.approx(wrist),
    ]
    assert headings("cylinder", 1.0, 0.3) == [(0.0, 0.0), (0.0, 0.0)]


def test_the_kind_of_a_question_is_told_from_its_words():
    rng = np.random.default_rng(0)
    names = {name: set() for name in KINDS}
    for name in KINDS:
        for _ in range(60):
            facts = scene(held=rng.choice([None, 0, 1]), success=bool(rng.random() < 0.5))
            names[name].add(question_kind(KINDS[name](facts, rng).text))
    assert names.pop("color_of") == {"color_of", "is_there"}
    assert names == {name: {name} for name in names}


def test_weights_decide_what_is_asked():
    rng = np.random.default_rng(0)
    asked = ask(scene(), rng, 400, {"held": 3.0, "done": 1.0, "how_many": 0.0})
    kinds = [question_kind(question.text) for question in asked]
    assert set(kinds) == {"held", "done"}
    assert kinds.count("held") == pytest.approx(300, abs=35)  # four standard deviations
    with pytest.raises(
        ValueError, match=r"unknown kinds of question \['hold'\]; known are where_from_gripper"
    ):
        ask(scene(), rng, 1, {"hold": 1.0})
    with pytest.raises(ValueError, match="add up to 0"):
        ask(scene(), rng, 1, {"held": 0.0})


def test_scenes_of_the_simulator_are_asked_within_the_vocabulary_and_the_range():
    """No word that the tokenizer was not trained on, no two objects of one name, and places that
    tokens can say."""
    env = sim.make_vector(robot="gantry", num_envs=64, cameras=(), num_threads=1)
    known, rng = set(" ".join(all_texts()).split()), np.random.default_rng(0)
    weights = dict.fromkeys(KINDS, 1.0)
    clamped = []
    for facts in env.sample_scenes(range(64))[1]:
        assert len({item.name for item in facts.objects}) == len(facts.objects)
        assert 1 + sum(item.color == facts.objects[0].color for item in facts.objects) < len(
            NUMBER_WORDS
        )
        for question in ask(facts, rng, 20, weights):
            if isinstance(question.answer, str):
                assert set(question.answer.split()) <= known
            else:
                limit = 0.32 if question.unit == "m" else 1.6
                clamped.append(max(abs(value) for value in question.answer) > limit)
            assert set(question.text.split()) <= known
        assert max(map(abs, plan(facts, rng).numbers)) < 0.32
    env.close()
    assert len(clamped) > 300
    assert not any(clamped)
