"""One contract for every task on every robot: shapes, seeds, chunks, endings, states."""

import numpy as np
import pytest

import sim
from sim.robots.rotations import quat_to_matrix, rpy_to_quat
from sim.spec import DEFAULT_ACTION_SPEC
from sim.workspace import POSE_HIGH, POSE_LOW

PAIRS = [*((task, "gantry") for task in sim.TASKS), ("pick_place", "panda")]
SIZE = 24


@pytest.fixture(scope="module", params=PAIRS, ids=["-".join(pair) for pair in PAIRS])
def env(request):
    task, robot = request.param
    made = sim.make_vector(
        task=task, robot=robot, num_envs=4, image_size=SIZE, max_steps=12, num_threads=1
    )
    yield made
    made.close()


def random_actions(n: int, horizon: int, seed: int = 0) -> np.ndarray:
    spec = DEFAULT_ACTION_SPEC
    return (
        np.random.default_rng(seed).uniform(spec.low, spec.high, (n, horizon, 7)).astype(np.float32)
    )


def assert_same(first, second) -> None:
    assert first.instruction == second.instruction
    np.testing.assert_array_equal(first.proprio, second.proprio)
    assert first.images.keys() == second.images.keys()
    for camera in first.images:
        np.testing.assert_array_equal(first.images[camera], second.images[camera])


def test_observations_have_the_promised_shapes(env):
    observation = env.reset([5, 6, 7], np.array([2, 0, 3]))
    assert list(observation.images) == list(env.cameras) == ["front", "wrist"]
    for image in observation.images.values():
        assert image.shape == (3, SIZE, SIZE, 3)
        assert image.dtype == np.uint8
        assert image.std() > 5  # a picture, not one colour
    assert observation.proprio.shape == (3, 7)
    assert observation.proprio.dtype == np.float32
    assert observation.instruction == [env.instructions[i] for i in (2, 0, 3)]
    assert not (observation.proprio[:, :6] < POSE_LOW.astype(np.float32)).any()
    assert not (observation.proprio[:, :6] > POSE_HIGH.astype(np.float32)).any()


def test_steps_have_the_promised_shapes(env):
    env.reset(range(4))
    result = env.step(random_actions(2, 3), np.array([3, 1]))
    assert result.reward.shape == (2,)
    assert result.reward.dtype == np.float32
    for name in ("terminated", "truncated", "success"):
        assert getattr(result, name).shape == (2,)
        assert getattr(result, name).dtype == bool
    assert result.num_steps.tolist() == [3, 3]
    assert set(result.metrics) == set(env.tasks[0].reward_names)
    assert all(((values >= 0) & (values <= 1)).all() for values in result.metrics.values())
    assert result.frames == {}


def test_a_start_depends_on_its_seed_alone(env):
    reference = env.reset([11, 12, 13, 14])
    state = env.get_state()
    shuffled = env.reset([13, 11, 14, 12], np.array([1, 3, 0, 2]))
    order = [2, 0, 3, 1]  # row i of `shuffled` is row order[i] of `reference`
    assert shuffled.instruction == [reference.instruction[i] for i in order]
    np.testing.assert_array_equal(shuffled.proprio, reference.proprio[order])
    np.testing.assert_array_equal(shuffled.images["front"], reference.images["front"][order])
    np.testing.assert_array_equal(
        env.get_state(np.array([1, 3, 0, 2])).rows["state"], state.rows["state"][order]
    )


def test_a_start_does_not_depend_on_the_number_of_environments(env):
    other = sim.make_vector(
        env.tasks[0].name,
        robot=env.physics.robot.name,
        num_envs=1,
        cameras=("wrist",),
        image_size=SIZE,
        num_threads=2,
    )
    for seed in (0, 21):
        alone, among = other.reset([seed]), env.reset([9, 8, seed, 7])
        np.testing.assert_array_equal(
            other.get_state().rows["state"][0], env.get_state(np.array([2])).rows["state"][0]
        )
        np.testing.assert_array_equal(alone.images["wrist"][0], among.images["wrist"][2])
        assert alone.instruction[0] == among.instruction[2]
    other.close()


def test_different_seeds_differ(env):
    states = env.get_state(np.arange(len(env.reset(range(100, 104)).instruction))).rows["state"]
    assert len(np.unique(states, axis=0)) == 4


def test_a_chunk_equals_its_steps(env):
    actions = random_actions(4, 6)
    env.reset(range(4))
    whole = env.step(actions)
    env.reset(range(4))
    parts = [env.step(actions[:, h : h + 1]) for h in range(6)]
    assert_same(whole.observation, parts[-1].observation)
    np.testing.assert_allclose(whole.reward, sum(part.reward for part in parts), atol=1e-6)
    np.testing.assert_array_equal(whole.num_steps, sum(part.num_steps for part in parts))


def test_actions_move_the_commanded_pose_in_metres_and_radians(env):
    before = env.reset(range(4)).proprio
    action = np.zeros((4, 1, 7), np.float32)
    action[:, 0] = [0.02, -0.01, 0.03, 0.1, -0.1, 0.15, -1.0]
    moved = env.step(action).observation.proprio[:, :6] - before[:, :6]
    expected = action[:, 0, :6] * env.physics.robot.mask
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_the_hand_follows_the_command(env):
    env.reset(range(4))
    action = np.zeros((4, 1, 7), np.float32)
    action[:, :, :3] = [0.01, 0.01, -0.01]
    for _ in range(4):
        env.step(action)
    action[:] = 0
    for _ in range(4):
        env.step(action)
    ids = np.arange(4)
    np.testing.assert_allclose(
        env.physics.hand_position(ids), env.physics.commanded[ids, :3], atol=2e-3
    )
    np.testing.assert_allclose(env.physics.hand_yaw(ids), env.physics.commanded[ids, 5], atol=2e-2)


def test_only_the_panda_tilts(env):
    env.reset(range(4))
    action = np.zeros((4, 1, 7), np.float32)
    action[:, 0, 3:5] = [0.1, -0.1]
    for _ in range(2):
        env.step(action)
    for _ in range(6):
        env.step(np.zeros((4, 1, 7), np.float32))
    tilts = env.physics.robot.name == "panda"
    pose = np.concatenate(
        [np.tile([[0.2, -0.2]], (4, 1)) * tilts, env.physics.commanded[:, 5:6]], axis=1
    )
    np.testing.assert_allclose(
        env.physics.hand_matrix(np.arange(4)), quat_to_matrix(rpy_to_quat(pose)), atol=0.03
    )


def test_time_truncates_and_never_terminates(env):
    env.reset(range(4))
    idle = np.zeros((4, 4, 7), np.float32)
    idle[:, :, 6] = -1
    for expected in (False, False, True):
        result = env.step(idle)
        assert result.truncated.tolist() == [expected] * 4
        assert not result.terminated.any()
    assert not result.success.any()


def test_an_environment_that_ended_stays_as_it_is(env):
    env.reset(range(4))
    env.step(random_actions(3, 12), np.array([0, 1, 2]))
    before = env.get_state().rows
    result = env.step(random_actions(4, 2, seed=1))
    after = env.get_state().rows
    assert result.num_steps.tolist() == [0, 0, 0, 2]
    assert result.truncated.tolist() == [True, True, True, False]
    assert result.reward[:3].tolist() == [0.0] * 3
    np.testing.assert_array_equal(before["state"][:3], after["state"][:3])
    assert (before["state"][3] != after["state"][3]).any()


def test_other_environments_are_left_alone(env):
    env.reset(range(4))
    before = env.get_state().rows["state"].copy()
    env.step(random_actions(1, 4), np.array([2]))
    env.reset([77], np.array([0]))
    after = env.get_state().rows["state"]
    np.testing.assert_array_equal(before[[1, 3]], after[[1, 3]])


def test_a_restored_state_continues_bit_for_bit(env):
    env.reset(range(4))
    env.step(random_actions(4, 4, seed=2))
    saved = env.get_state()
    seen = env.observe()
    first = env.step(random_actions(4, 4, seed=3))
    end = env.get_state().rows
    env.reset(range(50, 54))
    env.set_state(saved)
    assert_same(env.observe(), seen)
    second = env.step(random_actions(4, 4, seed=3))
    assert_same(first.observation, second.observation)
    np.testing.assert_array_equal(first.reward, second.reward)
    for name, values in env.get_state().rows.items():
        np.testing.assert_array_equal(values, end[name], err_msg=name)


def test_a_state_can_be_copied_into_other_environments(env):
    env.reset(range(4))
    env.step(random_actions(4, 2, seed=4))
    env.set_state(env.get_state(np.array([1])).take([0, 0]), np.array([3, 0]))
    seen = env.observe(np.array([1, 3, 0]))
    for row in (1, 2):
        np.testing.assert_array_equal(seen.proprio[0], seen.proprio[row])
        np.testing.assert_array_equal(seen.images["wrist"][0], seen.images["wrist"][row])
        assert seen.instruction[0] == seen.instruction[row]


def test_no_start_is_already_done(env):
    for first in range(0, 200, 4):
        env.reset(range(first, first + 4), render=False)
        assert not env.tasks[0].success(env.physics, np.arange(4)).any()


def test_instructions_name_one_object_each(env):
    for first in range(0, 100, 4):
        env.reset(range(first, first + 4), render=False)
        for facts in env.facts():
            names = [item.name for item in facts.objects]
            assert len(set(names)) == len(names)
            named = [item for item in facts.objects if item.role == "target"]
            assert [item.kind for item in named] == list(facts.template.kinds)
            assert facts.instruction == facts.template.fill([item.name for item in named])


def test_render_every_step_gives_the_same_last_picture(env):
    shared = {
        "robot": env.physics.robot.name,
        "num_envs": 4,
        "image_size": SIZE,
        "max_steps": 12,
        "num_threads": 1,
    }
    other = sim.make_vector(env.tasks[0].name, **shared, render_every_step=True)
    actions = random_actions(4, 3)
    env.reset(range(4))
    other.reset(range(4))
    plain, filmed = env.step(actions), other.step(actions)
    assert_same(plain.observation, filmed.observation)
    assert filmed.frames["front"].shape == (4, 3, SIZE, SIZE, 3)
    np.testing.assert_array_equal(filmed.frames["front"][:, -1], plain.observation.images["front"])
    assert (filmed.frames["front"][:, 0] != filmed.frames["front"][:, -1]).any()
    other.close()


def test_scenes_for_questions_are_exact_and_varied(env):
    first, facts = env.sample_scenes(range(4))
    second, again = env.sample_scenes(range(4))
    assert_same(first, second)
    assert facts == again
    held = [
        f.grasped is not None
        for start in range(0, 160, 4)
        for f in env.sample_scenes(range(start, start + 4))[1]
    ]
    assert 0.24 < np.mean(held) < 0.46  # 35 in 100: 160 scenes, standard error 0.038
