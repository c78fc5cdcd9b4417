"""Several tasks in one vector of environments: they take turns by seed, and each is itself."""

import numpy as np
import pytest

import sim
from sim.experts import Expert
from sim.questions import all_texts, plan

TASKS = ("reach", "push", "lift", "stack")


@pytest.fixture(scope="module")
def env():
    made = sim.make_vector(TASKS, robot="gantry", num_envs=8, cameras=(), num_threads=1)
    yield made
    made.close()


def test_the_seed_says_which_task_it_is(env):
    seen = env.reset([5, 8, 3, 2], np.array([7, 0, 3, 2]))
    words = [text.split()[0] for text in seen.instruction]
    assert (
        words
        == [env.task_name(seed) for seed in (5, 8, 3, 2)]
        == ["push", "reach", "stack", "lift"]
    )


def test_a_start_is_the_one_that_the_task_alone_has(env):
    env.reset(range(8))
    for index, task in enumerate(TASKS):
        alone = sim.make_vector(task, robot="gantry", num_envs=1, cameras=(), num_threads=1)
        for seed in (index, index + 4):
            seen = alone.reset([seed])
            here = np.array([seed])
            assert seen.instruction == env.observe(here).instruction
            np.testing.assert_array_equal(
                alone.get_state(np.array([0])).rows["state"], env.get_state(here).rows["state"]
            )


def test_the_expert_does_them_all_and_metrics_say_which(env):
    env.reset(range(8))
    expert = Expert(env)
    for _ in range(60):
        result = env.step(expert.act()[:, None])
    assert result.success.all()
    assert set(result.metrics) == {"success"} | {
        f"{t.name}/{term}" for t in env.tasks for term in t.reward_names
    }
    assert result.metrics["success"].tolist() == [1.0] * 8
    for index, task in enumerate(TASKS):
        there = np.arange(8) % 4 == index
        np.testing.assert_array_equal(np.isnan(result.metrics[f"{task}/success"]), ~there)
        assert (result.metrics[f"{task}/success"][there] == 1).all()


def test_a_state_takes_its_task_along(env):
    env.reset(range(8))
    asked = env.instructions
    env.set_state(env.get_state(np.array([1])).take([0, 0]), np.array([0, 6]))
    assert [env.instructions[i] for i in (0, 1, 6, 7)] == [asked[1], asked[1], asked[1], asked[7]]


def test_plans_are_about_the_scenes_own_task(env):
    rng = np.random.default_rng(0)
    known = set(" ".join(all_texts(TASKS)).split())
    for facts, task in zip(env.sample_scenes(range(8))[1], TASKS * 2, strict=True):
        found = plan(facts, rng)
        assert found.text.split()[0] == facts.instruction.split()[0] == task
        assert set(found.text.split()) <= known
        assert (len(found.numbers), len(found.mentions)) == (
            10,
            2,
        )  # one batch can hold plans of all tasks
        named = {item.name: item.position for item in facts.objects}
        for text, place, _ in found.mentions:
            assert found.text.startswith(text)
            name = " ".join(text.split()[-2:])
            np.testing.assert_allclose(place, np.subtract(named[name], facts.hand_position))
        if task in ("reach", "lift"):
            assert found.mentions[0] == found.mentions[1]
            assert found.numbers[:3] == found.numbers[3:6]
        if task == "stack":
            assert found.mentions[0] != found.mentions[1]


def test_rewards_of_other_tasks_are_not_paid(env):
    mixed = sim.make_vector(
        TASKS,
        robot="gantry",
        num_envs=4,
        cameras=(),
        num_threads=1,
        reward={"push": 1.0, "success": 0.0},
    )
    mixed.reset(range(4))
    expert = Expert(mixed)
    paid = sum(mixed.step(expert.act()[:, None]).reward for _ in range(60))
    assert paid[1] > 0.9
    assert paid[[0, 2, 3]].tolist() == [0.0] * 3


def test_no_task_and_an_unknown_one():
    with pytest.raises(ValueError, match="sim.task is empty"):
        sim.make_vector((), robot="gantry", num_envs=1, cameras=())
    with pytest.raises(ValueError, match="sim.task='lfit' is unknown; did you mean 'lift'"):
        sim.make_vector(("reach", "lfit"), robot="gantry", num_envs=1, cameras=())
