"""Starts keep their distances, and every range can be switched on."""

import numpy as np
import pytest

import sim
from sim.workspace import CENTER


def make(**randomize):
    return sim.make_vector(
        robot="gantry",
        num_envs=40,
        cameras=("front",),
        image_size=32,
        num_threads=1,
        randomize=randomize,
    )


def test_objects_keep_their_distances_and_stay_in_the_workspace():
    env = make()
    env.reset(range(40), render=False)
    ids = np.arange(40)
    blocks = [env.physics.block_position(ids, i)[:, :2] for i in range(2)]
    pads = [env.physics.pad_position(ids, i)[:, :2] for i in range(2)]

    def least(first, second):
        return np.linalg.norm(first - second, axis=1).min()

    assert least(*blocks) >= 0.09
    assert least(*pads) >= 0.09
    assert min(least(block, pad) for block in blocks for pad in pads) >= 0.085
    assert np.abs(np.stack([*blocks, *pads]) - CENTER).max() <= 0.11
    env.close()


def test_all_colours_and_shapes_appear():
    env = make()
    looks = []
    for first in range(0, 200, 40):
        env.reset(range(first, first + 40), render=False)
        looks += [(item.kind, item.color, item.shape) for f in env.facts() for item in f.objects]
    assert len({look for look in looks if look[0] == "block"}) == 18
    assert len({look for look in looks if look[0] == "pad"}) == 12
    env.close()


def test_only_the_allowed_looks_appear():
    env = make(colors=["red", "blue"], block_shapes=["cube"], pad_shapes=["disc"])
    env.reset(range(40), render=False)
    items = [item for facts in env.facts() for item in facts.objects]
    assert {item.color for item in items} == {"red", "blue"}
    assert {item.shape for item in items} == {"cube", "disc"}
    env.close()


@pytest.mark.parametrize(
    "randomize",
    [
        {"color_jitter": 0.1},
        {"light_jitter": 0.4},
        {"camera_position_jitter": 0.02},
        {"camera_angle_jitter": 0.02},
    ],
    ids=lambda value: next(iter(value)),
)
def test_a_range_changes_the_picture_and_nothing_else(randomize):
    plain, varied = make(), make(**randomize)
    first, second = plain.reset(range(8)), varied.reset(range(8))
    assert first.instruction == second.instruction
    np.testing.assert_array_equal(first.proprio, second.proprio)
    difference = np.abs(first.images["front"].astype(int) - second.images["front"]).mean(
        axis=(1, 2, 3)
    )
    assert (difference > 0.05).all()
    again = varied.reset(range(8))
    np.testing.assert_array_equal(again.images["front"], second.images["front"])
    restored = varied.get_state(np.array([0, 1]))
    varied.set_state(restored, np.array([5, 6]))
    np.testing.assert_array_equal(
        varied.observe(np.array([5, 6])).images["front"], second.images["front"][:2]
    )
    plain.close()
    varied.close()


def test_friction_is_written_to_the_blocks():
    env = make(friction=[0.5, 1.5])
    env.reset(range(40), render=False)
    columns = [
        env.physics.model.geom(f"block_{i}_{kind}").id
        for i in range(2)
        for kind in ("box", "cylinder")
    ]
    friction = env.physics.fields["geom_friction"][:, columns, 0]
    assert (friction == friction[:, :1]).all()
    assert 0.5 <= friction.min() < 0.6
    assert 1.4 < friction.max() <= 1.5
    env.close()


def test_points_are_projected_where_they_are_drawn():
    """The target block's centre lands on a pixel of its colour in both cameras whenever nothing
    stands before it."""
    env = sim.make_vector(
        robot="gantry", num_envs=30, image_size=96, num_threads=1, num_distractors=0
    )
    observation = env.reset(range(30))
    hits = []
    for row, facts in enumerate(env.facts()):
        block = facts.objects[0]
        pixel = block.pixels["front"]
        assert pixel is not None
        column, line = (int(96 * value) for value in pixel)
        shade = observation.images["front"][row, line, column].astype(float)
        wanted = np.array(
            env.physics.fields["geom_rgba"][row, env.physics.model.geom("block_0_box").id, :3]
        )
        hits.append(np.corrcoef(shade, wanted)[0, 1] > 0.9)
    assert np.mean(hits) > 0.8
    env.close()


def test_a_block_is_eight_pixels_wide_at_64():
    """Two points 4 cm apart, across the view at the workspace's centre, are at least 8 of 64 pixels
    apart."""
    env = sim.make_vector(
        robot="panda", num_envs=1, cameras=("front",), image_size=64, num_threads=1
    )
    env.reset([0])
    ids, half = np.array([0]), np.array([[0.0, 0.02, 0.0]])
    middle = np.array([[*CENTER, 0.02]])
    left, right = (env.physics.project(ids, "front", middle + sign * half)[0] for sign in (-1, 1))
    assert 64 * np.abs(right - left)[0] >= 7.95
    env.close()
