"""Success of reach, push, lift and stack, case by case, on states written by hand; and what is
asked of whom."""

from pathlib import Path

import numpy as np
import pytest
import yaml

import sim
from sim.task import TARGET
from sim.tasks import TASKS, load_task
from sim.tasks.push import path_width
from sim.tasks.stack import BELOW
from sim.workspace import CENTER, MAX_OPENING

ID = np.array([0])
ZERO = np.zeros(1)


class Bench:
    """One environment of a task, to be arranged by hand."""

    def __init__(self, task):
        self.env = sim.make_vector(task, robot="gantry", num_envs=1, cameras=(), num_threads=1)
        self.physics = self.env.physics
        self.env.reset([3])
        # Everything far away from where the cases happen.
        self.block(BELOW, (CENTER[0] + 0.15, CENTER[1] + 0.15, 0.02))

    def block(self, index, position):
        self.physics.place_block(ID, index, np.array([position]), ZERO)

    def hand(self, position, opening=MAX_OPENING, closing=False):
        pose = np.array([[*position, 0.0, 0.0, 0.0]])
        self.physics.place_hand(ID, pose, np.full(1, opening), np.full(1, closing))

    def success(self):
        self.physics.refresh(ID)
        return bool(self.env.tasks[0].success(self.physics, ID)[0])


@pytest.fixture(scope="module")
def reach():
    return Bench("reach")


@pytest.mark.parametrize(
    ("offset", "height", "expected"),
    [
        ((0, 0, 0), 0.02, True),  # the goal is 4.5 cm above the centre
        ((0.012, 0, 0.012), 0.02, True),  # 1.7 cm from it
        ((0, 0.019, 0), 0.02, True),
        ((0, 0.021, 0), 0.02, False),  # beyond 2 cm
        ((0.012, 0.012, 0.012), 0.02, False),  # 2.08 cm
        ((0, 0, 0), 0.05, False),  # the block is in the air
    ],
)
def test_reach(reach, offset, height, expected):
    reach.block(TARGET, (0.5, 0.0, height))
    reach.hand(np.add((0.5, 0.0, height + 0.045), offset))
    assert reach.success() is expected


def test_reaching_for_the_other_block_is_no_success(reach):
    reach.block(TARGET, (0.45, -0.05, 0.02))
    reach.block(BELOW, (0.55, 0.05, 0.02))
    reach.hand((0.55, 0.05, 0.065))
    assert not reach.success()
    reach.hand((0.45, -0.05, 0.065))
    assert reach.success()


@pytest.fixture(scope="module")
def push():
    return Bench("push")


@pytest.mark.parametrize(
    ("offset", "height", "speed", "expected"),
    [
        ((0.02, 0.02), 0.02, 0.0, True),  # 2.83 cm
        ((0.0, 0.031), 0.02, 0.0, False),
        ((0.0, 0.0), 0.03, 0.0, False),  # not on the table
        ((0.0, 0.0), 0.02, 0.04, True),
        ((0.0, 0.0), 0.02, 0.06, False),  # only passing by
    ],
)
def test_push(push, offset, height, speed, expected):
    pad = push.physics.pad_position(ID, TARGET)[0]
    push.block(TARGET, (pad[0] + offset[0], pad[1] + offset[1], height))
    push.hand((0.5, 0.0, 0.2), opening=0.0, closing=True)
    push.physics.qvel[ID[:, None], push.physics._block_qvel[TARGET] + np.arange(3)] = [
        [speed, 0.0, 0.0]
    ]
    assert push.success() is expected


def test_a_block_that_is_held_is_not_pushed(push):
    pad = push.physics.pad_position(ID, TARGET)[0]
    push.block(TARGET, (pad[0], pad[1], 0.02))
    push.physics.qvel[ID[:, None], push.physics._block_qvel[TARGET] + np.arange(3)] = 0.0
    push.hand((pad[0], pad[1], 0.02), opening=0.04, closing=True)
    assert not push.success()
    assert push.physics.grasped(ID, TARGET)[0]


def test_the_way_is_measured_from_behind_the_block():
    blocks = np.array([[[0.0, 0.0], [0.1, 0.03]]])
    pads = np.array([[[0.2, 0.0], [0.0, 0.2]]])
    width = path_width(blocks, pads)[0]
    # From (0, 0) to (0.2, 0) the other block is passed at 3 cm; to (0, 0.2) it is at best 10 cm
    # away.
    assert width[0] == pytest.approx([0.03, 0.1])
    # From (0.1, 0.03) to (0.2, 0): the way is (10, -3) / sqrt(109); it begins 6.5 cm behind, at
    # 0.0377, 0.0487; the other block at the origin is nearest to that beginning, hypot(0.0377,
    # 0.0487) = 0.0616.
    assert width[1, 0] == pytest.approx(0.0616, abs=1e-4)


def test_no_other_block_lies_in_the_way():
    env = sim.make_vector("push", robot="gantry", num_envs=100, cameras=(), num_threads=1)
    env.reset(range(100))
    ids = np.arange(100)
    blocks = np.stack([env.physics.block_position(ids, i)[:, :2] for i in range(2)], axis=1)
    pads = np.stack([env.physics.pad_position(ids, i)[:, :2] for i in range(2)], axis=1)
    width = path_width(blocks, pads)
    free = width[:, 0, 0] > 0.075
    assert free.mean() > 0.95
    assert (width[~free].reshape(-1, 4).max(axis=1) <= 0.075).all()  # only where no way is free
    assert (width[:, 1, 1] > 0.075).mean() > 0.3  # it is not simply the widest that is taken


@pytest.fixture(scope="module")
def lift():
    return Bench("lift")


@pytest.mark.parametrize(
    ("height", "opening", "closing", "expected"),
    [
        (0.11, 0.04, True, True),  # 9 cm above its rest at 2 cm
        (0.09, 0.04, True, False),  # 7 cm
        (0.11, 0.04, False, False),  # about to fall
        (0.11, MAX_OPENING, False, False),  # thrown
    ],
)
def test_lift(lift, height, opening, closing, expected):
    lift.block(TARGET, (0.5, 0.0, height))
    lift.hand((0.5, 0.0, height), opening, closing)
    assert lift.success() is expected


@pytest.fixture(scope="module")
def stack():
    return Bench("stack")


@pytest.mark.parametrize(
    ("offset", "hand", "opening", "expected"),
    [
        ((0.0, 0.0, 0.04), 0.16, MAX_OPENING, True),
        ((0.012, 0.012, 0.044), 0.16, MAX_OPENING, True),  # 1.7 cm aside, 4 mm too high
        ((0.0, 0.021, 0.04), 0.16, MAX_OPENING, False),
        ((0.0, 0.0, 0.047), 0.16, MAX_OPENING, False),  # still above
        ((0.0, 0.0, 0.0), 0.16, MAX_OPENING, False),
        ((0.0, 0.0, 0.04), 0.07, MAX_OPENING, False),  # the hand is still there
        ((0.0, 0.0, 0.04), 0.16, 0.04, False),
    ],
)
def test_stack(stack, offset, hand, opening, expected):
    stack.block(BELOW, (0.5, 0.0, 0.02))
    stack.block(TARGET, np.add((0.5, 0.0, 0.02), offset))
    stack.hand((0.5, 0.0, hand), opening)
    assert stack.success() is expected


def test_the_lower_block_on_the_upper_one_is_no_success(stack):
    stack.block(TARGET, (0.5, 0.0, 0.02))
    stack.block(BELOW, (0.5, 0.0, 0.06))
    stack.hand((0.5, 0.0, 0.16))
    assert not stack.success()


def test_stacking_needs_two_blocks():
    with pytest.raises(
        ValueError, match="sim.task=stack needs two blocks; set sim.num_distractors to 1 or 2"
    ):
        sim.make_vector("stack", robot="gantry", num_envs=1, cameras=(), num_distractors=0)


@pytest.mark.parametrize(
    ("task", "named", "text"),
    [
        ("reach", [0], "reach the {0}"),
        ("lift", [0], "lift the {0}"),
        ("push", [0, 2], "push the {0} to the {2}"),
        ("stack", [0, 1], "stack the {0} on the {1}"),
    ],
)
def test_instructions_name_their_objects(task, named, text):
    env = sim.make_vector(task, robot="gantry", num_envs=20, cameras=(), num_threads=1)
    env.reset(range(20))
    for facts in env.facts():
        assert [i for i, item in enumerate(facts.objects) if item.role == "target"] == named
        assert facts.instruction == text.format(*(item.name for item in facts.objects))


def test_the_beginning_of_a_sentence_ends_with_the_name():
    template = load_task("stack").template
    names = ("red cube", "blue brick")
    assert template.prefix_through(names, 0) == "stack the red cube"
    assert template.prefix_through(names, 1) == template.fill(names)
    assert template.fill(names) == "stack the red cube on the blue brick"
    assert template.fill(names, 1) == "put the red cube on top of the blue brick"


def test_every_phrasing_fits_the_instructions_of_the_model_that_ships():
    from tokenizers import Tokenizer

    root = Path(__file__).parents[2]
    tokenizer = Tokenizer.from_file(
        str(root / "vla" / "models" / "embedded" / "tiny" / "tokenizer.json")
    )
    length = yaml.safe_load((root / "configs" / "policy" / "token.yaml").read_text())[
        "instruction_length"
    ]
    for template in (load_task(name).template for name in TASKS):
        for phrasing in range(1 + len(template.paraphrases)):
            text = template.fill(("purple cylinder", "yellow cylinder"), phrasing)
            # One token begins every instruction.
            assert 1 + len(tokenizer.encode(text, add_special_tokens=False).ids) <= length, text
