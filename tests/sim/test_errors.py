"""Errors for people: the setting, its value, the remedy."""

import numpy as np
import pytest

import sim


@pytest.fixture(scope="module")
def env():
    return sim.make_vector(robot="gantry", num_envs=3, cameras=(), num_threads=1, max_steps=80)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "pickplace"}, "sim.task='pickplace' is unknown; did you mean 'pick_place'"),
        ({"robot": "pandas"}, "sim.robot='pandas' is unknown; did you mean 'panda'"),
        ({"robot": "zzz"}, "sim.robot='zzz' is unknown; choose one of panda, gantry"),
        ({"cameras": ("frnt",)}, "sim.cameras='frnt' is unknown; did you mean 'front'"),
        ({"renderer": "opengl"}, "sim.renderer"),
        ({"reward": {"sucess": 1.0}}, "sim.reward='sucess' is unknown; did you mean 'success'"),
        (
            {"randomize": {"block_yow": 0.1}},
            "sim.randomization='block_yow' is unknown; did you mean 'block_yaw'",
        ),
        (
            {"randomize": {"colors": ["rod"]}},
            "sim.randomization.colors='rod' is unknown; did you mean 'red'",
        ),
        ({"randomize": {"block_shapes": ["cone"]}}, "choose one of cube, cylinder, brick"),
        ({"randomize": {"hand_height": [0.3, 0.1]}}, "sim.randomization.hand_height"),
        ({"randomize": {"block_yaw": -0.1}}, "sim.randomization.block_yaw"),
        ({"randomize": {"colors": ["red"], "pad_shapes": ["disc"]}}, "needs 2 different pads"),
        ({"num_envs": 0}, "sim.num_envs \\(0\\) must be at least 1"),
        ({"max_steps": 0}, "sim.max_steps \\(0\\) must be at least 1"),
        ({"num_threads": -1}, "sim.num_threads \\(-1\\) must be at least 0"),
        ({"num_distractors": 9}, "sim.num_distractors \\(9\\) must be from 0 to 2"),
        ({"image_size": 0, "cameras": ("front",)}, "sim.image_size \\(0\\)"),
    ],
)
def test_settings(options, message):
    with pytest.raises(ValueError, match=message):
        sim.make_vector(**{"robot": "gantry", "num_envs": 1, "cameras": (), **options})


def test_a_chunk_must_divide_the_episode(env):
    with pytest.raises(
        ValueError, match=r"chunk of actions \(7\) must divide sim.max_steps \(80\)"
    ):
        env.step(np.zeros((3, 7, 7)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_actions_name_their_environments(env, bad):
    env.reset([0, 1, 2])
    before = env.get_state().rows["state"]
    actions = np.zeros((3, 2, 7))
    actions[1, 1, 4] = bad
    with pytest.raises(ValueError, match=r"environments \[0\] are NaN or infinite"):
        env.step(actions, np.array([2, 0, 1]))
    np.testing.assert_array_equal(env.get_state().rows["state"], before)


@pytest.mark.parametrize("shape", [(2, 1, 7), (3, 7), (3, 1, 6)])
def test_actions_have_one_shape(env, shape):
    with pytest.raises(ValueError, match=r"actions must be \[3, H, 7\]"):
        env.step(np.zeros(shape))


def test_seeds(env):
    with pytest.raises(ValueError, match="seed -4 is negative"):
        env.reset([1, -4])
    with pytest.raises(ValueError, match="2 seeds for 1 environments"):
        env.reset([1, 2], np.array([0]))


def test_ids(env):
    with pytest.raises(ValueError, match=r"from 0 to 2 .* got \[3\]"):
        env.reset([1], np.array([3]))
    with pytest.raises(ValueError, match="must be distinct"):
        env.observe(np.array([1, 1]))
    with pytest.raises(ValueError, match="the state has 1 rows for 2 environments"):
        env.set_state(env.get_state(np.array([0])), np.array([0, 1]))
