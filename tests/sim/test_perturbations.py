"""Every perturbation changes what it says and nothing else: a seed keeps its objects, their places
and their names."""

import numpy as np
import pytest

import sim

SEEDS = range(6)


def look(perturbation, task="pick_place"):
    env = sim.make_vector(
        task, robot="gantry", num_envs=6, image_size=32, num_threads=1, perturbation=perturbation
    )
    seen = env.reset(SEEDS)
    facts = env.facts()
    ids = np.arange(6)
    places = np.stack([env.physics.block_position(ids, i) for i in range(2)])
    env.close()
    return seen, facts, places


@pytest.fixture(scope="module")
def plain():
    return look("none")


@pytest.mark.parametrize("name", [name for name in sim.PERTURBATIONS if name != "none"])
def test_one_thing_differs(plain, name):
    seen, facts, places = look(name)
    before, facts_before, places_before = plain
    np.testing.assert_array_equal(places, places_before)
    named = [[(o.name, o.role) for o in fact.objects] for fact in (*facts, *facts_before)]
    assert named[:6] == named[6:]
    changed = {
        "words": seen.instruction != before.instruction,
        "hand": not np.array_equal(seen.proprio, before.proprio),
        "picture": np.abs(seen.images["front"].astype(int) - before.images["front"]).mean() > 1.0,
    }
    expected = {"words": name == "wording", "hand": name == "start", "picture": name != "wording"}
    assert changed == expected


def test_paraphrases_take_turns_and_name_the_same_objects(plain):
    seen, facts, _ = look("wording")
    assert all(
        text != was for text, was in zip(seen.instruction, plain[0].instruction, strict=True)
    )
    for fact in facts:
        assert all(item.name in fact.instruction for item in fact.objects if item.role == "target")
    verbs = [text.split()[0] for text in seen.instruction]
    assert verbs == ["place", "move", "the", "set", "place", "move"]  # four paraphrases, by seed


def test_ranges_of_a_run_are_kept_where_the_perturbation_says_nothing():
    shared = {"robot": "gantry", "num_envs": 4, "cameras": (), "num_threads": 1}
    env = sim.make_vector(
        **shared, randomize={"colors": ["red", "blue"], "hand_yaw": 0.0}, perturbation="camera"
    )
    assert env.reset(range(4)).proprio[:, 5].tolist() == [0.0] * 4
    assert {item.color for facts in env.facts() for item in facts.objects} <= {"red", "blue"}


def test_unknown():
    with pytest.raises(
        ValueError, match="sim.perturbation='ligt' is unknown; did you mean 'light'"
    ):
        sim.make_vector(robot="gantry", num_envs=1, cameras=(), perturbation="ligt")
