"""The scripted expert reaches what it must, and recovers."""

import numpy as np
import pytest

import sim
from sim.experts import Expert


def run(env, expert, ids, steps=80):
    """Control steps until each environment ended, and the actions that were taken."""
    lengths, actions = np.zeros(env.num_envs, dtype=int), []
    running = np.asarray(ids)
    for _ in range(steps):
        action = expert.act(running)
        actions.append(action)
        result = env.step(action[:, None], running)
        lengths[running] += 1
        running = running[~(result.terminated | result.truncated)]
        if not len(running):
            break
    return lengths, actions


@pytest.mark.parametrize(
    ("task", "robot", "starts"),
    [
        *(("pick_place", "gantry", 200), ("pick_place", "panda", 80)),
        *((task, "gantry", 100) for task in ("reach", "push", "lift", "stack")),
        *((task, "panda", 40) for task in ("push", "stack")),
    ],
)
def test_expert_succeeds(task, robot, starts):
    env = sim.make_vector(task, robot=robot, num_envs=starts, cameras=(), num_threads=1)
    env.reset(range(1000, 1000 + starts))
    lengths, actions = run(env, Expert(env), range(starts))
    success = env.step(np.zeros((starts, 1, 7), np.float32)).success
    assert success.mean() >= 0.98
    shortest, longest = {"reach": (3, 8), "push": (20, 35), "lift": (12, 25)}.get(task, (25, 45))
    assert shortest <= lengths.mean() <= longest
    moves = np.concatenate(actions)
    assert np.abs(moves[:, :3]).max() <= 0.0301  # a moderate, predictable speed
    assert set(np.unique(moves[:, 6])) <= {-1.0, 1.0}


def test_expert_succeeds_with_more_distractors_and_one_hand_pose():
    ranges = {"hand_xy": 0.0, "hand_yaw": 0.0, "hand_height": [0.15, 0.15]}
    env = sim.make_vector(
        robot="gantry", num_envs=50, cameras=(), num_threads=1, num_distractors=2, randomize=ranges
    )
    proprio = env.reset(range(50)).proprio
    np.testing.assert_array_equal(proprio, np.tile(proprio[:1], (50, 1)))
    run(env, Expert(env), range(50))
    assert env.step(np.zeros((50, 1, 7), np.float32)).success.mean() >= 0.96


def test_expert_recovers_from_disturbances_and_marks_them():
    env = sim.make_vector(robot="gantry", num_envs=60, cameras=(), num_threads=1, max_steps=120)
    env.reset(range(60))
    expert = Expert(env, seed=1, expert_perturbation_probability=0.03)
    marked = 0
    for _ in range(120):
        action = expert.act()
        marked += expert.perturbed.sum()
        result = env.step(action[:, None])
    assert marked > 60
    assert result.success.mean() >= 0.93


def test_without_disturbance_nothing_is_marked_and_actions_are_deterministic():
    env = sim.make_vector(robot="gantry", num_envs=2, cameras=(), num_threads=1)
    expert = Expert(env)
    taken = []
    for _ in range(2):
        env.reset([4, 5])
        expert.reset()
        taken.append(np.stack(run(env, expert, range(2), steps=20)[1]))
        assert not expert.perturbed.any()
    np.testing.assert_array_equal(*taken)


def test_expert_opens_again_and_returns_to_a_dropped_block():
    env = sim.make_vector(robot="gantry", num_envs=1, cameras=(), num_threads=1, max_steps=200)
    env.reset([2])
    expert, ids = Expert(env), np.array([0])
    while env.physics.block_position(ids, 0)[0, 2] < 0.06:
        env.step(expert.act()[:, None])
    loose = np.zeros((1, 1, 7), np.float32)
    loose[..., 6] = -1
    for _ in range(6):
        env.step(loose)
    assert env.physics.block_position(ids, 0)[0, 2] < 0.03  # it fell
    for _ in range(80):
        result = env.step(expert.act()[:, None])
    assert result.success[0]


def test_expert_finishes_scenes_that_start_anywhere():
    """Scenes for questions can be continued: held blocks are truly held, hands stand clear of
    everything else."""
    env = sim.make_vector(robot="panda", num_envs=60, cameras=(), num_threads=1)
    _, facts = env.sample_scenes(range(60))
    held = np.array([f.grasped == 0 for f in facts])
    expert = Expert(env)
    run(env, expert, range(60))
    success = env.step(np.zeros((60, 1, 7), np.float32)).success
    assert held.sum() >= 5
    assert success[held].mean() >= 0.8
    assert success.mean() >= 0.9
