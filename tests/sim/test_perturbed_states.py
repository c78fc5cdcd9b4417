"""Scenes in the middle of disturbed episodes."""

import numpy as np

import sim
from sim.experts.perturbed_states import sample_perturbed_states


def test_a_seed_gives_the_same_moments_and_they_hold_what_random_poses_do_not():
    env = sim.make_vector(num_envs=48, cameras=())
    seeds = np.arange(10**9, 10**9 + 48)
    _, before = env.sample_scenes(seeds)
    seen, facts = sample_perturbed_states(env, seeds)
    again, facts_again = sample_perturbed_states(env, seeds)
    assert facts == facts_again
    np.testing.assert_array_equal(seen.proprio, again.proprio)
    moved = [a.hand_position != b.hand_position for a, b in zip(before, facts, strict=True)]
    assert 0.5 < np.mean(moved) < 0.9  # a quarter of the scenes stay as they were drawn
    pushed = [
        np.linalg.norm(np.subtract(a.objects[0].position, b.objects[0].position)) > 0.003
        for a, b in zip(before, facts, strict=True)
    ]
    assert sum(pushed) >= 3
