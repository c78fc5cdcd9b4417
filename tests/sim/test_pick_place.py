"""Success and grasp of pick-and-place, case by case, on states written by hand."""

import numpy as np
import pytest

import sim
from sim.experts import Expert
from sim.task import TARGET
from sim.workspace import MAX_OPENING

ID = np.array([0])


@pytest.fixture(scope="module")
def env():
    return sim.make_vector(robot="gantry", num_envs=2, cameras=(), num_threads=1, num_distractors=1)


def arrange(
    env, offset=(0.0, 0.0), height=0.02, opening=MAX_OPENING, retreat=0.1, closing=False
) -> bool:
    """Block 0 `offset` from pad 0 at `height`, the hand `retreat` above it; whether that counts as
    success."""
    physics = env.physics
    env.reset([3])
    block = physics.pad_position(ID, TARGET) + np.array([*offset, 0.0])
    block[:, 2] = height
    physics.place_block(ID, TARGET, block, np.zeros(1))
    pose = np.concatenate([block + np.array([0, 0, retreat]), np.zeros((1, 3))], axis=1)
    physics.place_hand(ID, pose, np.full(1, opening), np.full(1, closing))
    physics.refresh(ID)
    return bool(env.tasks[0].success(physics, ID)[0])


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({}, True),
        ({"offset": (0.02, 0.02)}, True),  # 2.83 cm from the centre
        ({"offset": (0.0, 0.029)}, True),
        ({"offset": (0.0, 0.031)}, False),  # beyond 3 cm
        ({"offset": (0.03, 0.03)}, False),
        ({"height": 0.025}, True),  # within 6 mm of rest
        ({"height": 0.03}, False),  # still in the air, or on another block
        ({"opening": 0.04}, False),  # fingers not open
        ({"opening": 0.055}, True),
        ({"retreat": 0.04}, False),  # hand still there
        ({"retreat": 0.055}, True),
    ],
)
def test_success(env, case, expected):
    assert arrange(env, **case) is expected


def test_the_wrong_block_on_the_right_pad_is_no_success(env):
    arrange(env)
    physics = env.physics
    target, other = physics.block_position(ID, 0), physics.block_position(ID, 1)
    physics.place_block(ID, 0, other, np.zeros(1))
    physics.place_block(ID, 1, target, np.zeros(1))
    physics.refresh(ID)
    assert not env.tasks[0].success(physics, ID)[0]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"retreat": 0.0, "opening": 0.04, "closing": True}, True),
        (
            {"retreat": 0.0, "opening": 0.04, "closing": False},
            False,
        ),  # nobody told the fingers to close
        (
            {"retreat": 0.0, "opening": 0.02, "closing": True},
            False,
        ),  # narrower than the block: it is not between them
        ({"retreat": 0.05, "opening": 0.04, "closing": True}, False),  # the hand is 5 cm above it
    ],
)
def test_grasped(env, case, expected):
    arrange(env, height=0.1, **case)
    assert env.physics.grasped(ID, TARGET)[0] == expected


def test_success_ends_the_episode_inside_a_chunk_and_pays_once():
    env = sim.make_vector(robot="gantry", num_envs=1, cameras=(), num_threads=1, max_steps=80)
    env.reset([0])
    expert = Expert(env)
    start = env.get_state()
    actions, done = [], False
    while not done:
        actions.append(expert.act()[0])
        result = env.step(actions[-1][None, None])
        done = bool(result.terminated[0])
        assert result.reward[0] == float(done)
    count = len(actions)
    assert not result.truncated[0]
    env.set_state(start)
    padded = np.stack(actions + [np.zeros(7, np.float32)] * (80 - count))[None]
    whole = env.step(padded)
    assert whole.num_steps[0] == count < 80
    assert whole.terminated[0]
    assert not whole.truncated[0]
    assert whole.reward[0] == 1.0


def test_shaped_reward_is_bounded_by_its_weights_and_rewards_no_waiting():
    weights = {"reach": 0.1, "grasp": 0.2, "lift": 0.2, "place": 0.5, "success": 1.0}
    env = sim.make_vector(robot="gantry", num_envs=4, cameras=(), num_threads=1, reward=weights)
    env.reset(range(4))
    expert, total = Expert(env), np.zeros(4)
    for _ in range(60):
        total += env.step(expert.act()[:, None]).reward
    np.testing.assert_allclose(
        total, 2.0, atol=0.02
    )  # every term comes (almost) to 1: 0.1 + 0.2 + 0.2 + 0.5 + 1
    env.reset(range(4))
    hold = np.zeros((4, 1, 7), np.float32)
    first = env.step(hold).reward
    later = sum(env.step(hold).reward for _ in range(10))
    assert (first > 0).all()
    assert (later < 0.01).all()
