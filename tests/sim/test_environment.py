"""The gymnasium interfaces pass gymnasium's own checker."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import sim
from sim.environment import Environment, VectorAdapter, register_environments


def test_single_environment_passes_the_checker():
    env = Environment(robot="gantry", image_size=16, max_steps=8, render_mode="rgb_array")
    with warnings.catch_warnings():
        # Metres and radians, not [-1, 1], and an environment made by hand: both on purpose.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized.*")
        warnings.filterwarnings("ignore", message=".*not within the passive.*|.*spec.*")
        check_env(env)
    env.close()


def test_registered_names_can_be_made():
    register_environments()
    register_environments()  # again is harmless
    env = gymnasium.make("PickPlacePanda-v0", image_size=16, cameras=("wrist",), max_steps=4)
    observation, info = env.reset(seed=7)
    assert info["seed"] == 7
    assert observation["wrist"].shape == (16, 16, 3)
    assert observation["instruction"].startswith("put the ")
    ended = [env.step(env.action_space.sample())[3] for _ in range(4)]
    assert ended == [False, False, False, True]
    env.close()


def test_vector_adapter_resets_on_the_step_after_the_end():
    env = VectorAdapter(
        sim.make_vector(robot="gantry", num_envs=3, image_size=16, max_steps=2, num_threads=1)
    )
    observation, info = env.reset(seed=[4, 5, 6])
    assert info["seed"].tolist() == [4, 5, 6]
    assert env.observation_space.contains(observation)
    instruction = observation["instruction"]
    actions = np.zeros((3, 7), np.float32)
    ends = []
    for _ in range(3):
        observation, reward, terminated, truncated, info = env.step(actions)
        assert env.observation_space.contains(observation)
        assert reward.tolist() == [0.0] * 3
        assert not terminated.any()
        ends.append(truncated.tolist())
    assert ends == [[False] * 3, [True] * 3, [False] * 3]
    assert observation["instruction"] != instruction  # the third step was a new start
    env.close()


def test_adapter_follows_the_environment_inside():
    inner = sim.make_vector(robot="gantry", num_envs=2, image_size=16, num_threads=1)
    env = VectorAdapter(inner)
    first, _ = env.reset(seed=9)
    np.testing.assert_array_equal(first["front"], inner.reset([9, 10]).images["front"])
    env.close()


def test_unknown_render_mode():
    with pytest.raises(ValueError, match="render_mode='human' is unknown; choose 'rgb_array'"):
        Environment(render_mode="human")
