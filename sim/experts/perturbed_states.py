"""States from the middle of disturbed episodes, for questions about pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.experts.expert import Expert
from sim.task import SceneFacts, SimObservation
from sim.vector import VectorEnvironment

MAX_STEPS = 24
"""Most control steps from the random scene to the state; a quarter of the scenes take none."""
BURST_PROBABILITY = 0.2
BURST_SPEED = 0.04
"""Disturbances of the expert; see `Expert`."""
TILT = slice(3, 5)
"""Roll and pitch of an action: no demonstration moves them."""
YAW = 5
"""Yaw of an action."""


def sample_perturbed_states(
    env: VectorEnvironment, seeds: Sequence[int] | np.ndarray
) -> tuple[SimObservation, list[SceneFacts]]:
    """Observations and ground truth of the scenes of `seeds` after some control steps.

    A disturbed expert acts in between: it pushes blocks, comes down beside them or turned against
    them, as policies do. Random poses of the hand contain no such states. In half of the scenes
    the expert does not turn the hand at all.
    """
    seeds = np.asarray(seeds, dtype=np.int64)
    ids = np.arange(len(seeds))
    env.sample_scenes(seeds, render=False)
    rng = np.random.default_rng(seeds)
    num_steps = np.maximum(rng.integers(-MAX_STEPS // 3, MAX_STEPS + 1, len(ids)), 0)
    may_turn = rng.random(len(ids)) < 0.5
    expert = Expert(
        env,
        seed=int(seeds[0]),
        noise=0.1,
        expert_perturbation_probability=BURST_PROBABILITY,
        burst_speed=BURST_SPEED,
    )
    for step in range(MAX_STEPS):
        running = ids[num_steps > step]
        if not len(running):
            break
        action = expert.act(running)
        action[:, TILT] = 0.0
        action[~may_turn[running], YAW] = 0.0
        env.step(action[:, None], running, render=False)
    return env.observe(ids), env.facts(ids)
