"""Scenes as a policy meets them: from anywhere, played on for a while by an expert who is badly
disturbed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.experts.expert import Expert
from sim.task import SceneFacts, SimObservation
from sim.vector import VectorEnvironment

LONGEST = 24
"""Control steps that a scene is played on at most; a quarter of the scenes stay as they were
drawn."""
BURST_PROBABILITY = 0.2
BURST_SPEED = 0.04
TILT = slice(3, 5)
TURN = 5
"""Of an action: roll and pitch, which no demonstration moves, and yaw."""


def sample_perturbed_states(
    env: VectorEnvironment, seeds: Sequence[int] | np.ndarray
) -> tuple[SimObservation, list[SceneFacts]]:
    """What the scenes of `seeds` look like some control steps later, and the truth about them.

    A policy pushes blocks around, comes down beside them and turned against them; random poses of
    the hand hold nothing of that. In half of the scenes the expert does not turn the hand at all.
    """
    seeds = np.asarray(seeds, dtype=np.int64)
    ids = np.arange(len(seeds))
    env.sample_scenes(seeds, render=False)
    rng = np.random.default_rng(seeds)
    left = np.maximum(rng.integers(-LONGEST // 3, LONGEST + 1, len(ids)), 0)
    turns = rng.random(len(ids)) < 0.5
    expert = Expert(
        env,
        seed=int(seeds[0]),
        noise=0.1,
        burst_probability=BURST_PROBABILITY,
        burst_speed=BURST_SPEED,
    )
    for step in range(LONGEST):
        going = ids[left > step]
        if not len(going):
            break
        action = expert.act(going)
        action[:, TILT] = 0.0
        action[~turns[going], TURN] = 0.0
        env.step(action[:, None], going, render=False)
    return env.observe(ids), env.facts(ids)
