"""Films of a run: the held-out starts before and after reinforcement learning, drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vla.evaluation.checkpoint_settings import checkpoint_settings
from vla.files.reading import read_json
from vla.pipelines.robot.policy import find_weights, load_policy
from vla.rl.rollout import collect_rollout
from vla.simulator import make_simulator
from vla.statistics import SuccessRate
from vla.training.checkpoint import last_checkpoint, load_checkpoint
from vla.viewer.episodes import episode_viewer
from vla.viewer.film import FilmedEpisode, Half, write_film

TITLES = {"before": "before RL", "after": "after RL"}
CAMERA = "front"


def film_run(run: Path, output: Path, num_starts: int, pixels: int) -> int:
    """Film the first `num_starts` held-out starts under the weights before and after RL.

    Returns the size of the film in bytes. Raises ValueError where the run has no evaluation of
    both, or no checkpoint of one.
    """
    if num_starts < 2 or num_starts % 2:
        raise ValueError(f"--starts ({num_starts}) must be an even number of at least 2")
    results = read_json(run / "results.json", remedy="finish the run first")
    stages = results.get("stages", {})
    for name, title in TITLES.items():
        if "n" not in stages.get(f"evaluation_{name}", {}).get("greedy", {}):
            raise ValueError(
                f"{run} has no evaluation {title}, or one of an earlier version: finish a run "
                "with RL"
            )
    config = checkpoint_settings(run, [f"sim.num_envs={num_starts}"])
    seeds = [config.evaluation.eval_seeds.first + i for i in range(num_starts)]
    halves = []
    for name, title in TITLES.items():
        greedy = stages[f"evaluation_{name}"]["greedy"]
        rate = SuccessRate(round(greedy["mean"] * greedy["n"]), greedy["n"], None)
        episodes = film_starts(run, config, weights_of(run, name), seeds, pixels)
        halves.append(Half(title, rate, episodes))
    return write_film(output, halves, control_hz=20.0)


def weights_of(run: Path, name: str) -> dict[str, Any]:
    """The weights that the evaluation `name` (before or after) was made with."""
    if name == "after":
        weights = find_weights(run)
    else:
        path = last_checkpoint(run / "checkpoints" / "sft")
        weights = None if path is None else load_checkpoint(path)["policy"]
    if weights is None:
        raise ValueError(f"{run} holds no weights from {TITLES[name]}")
    return weights


def film_starts(
    run: Path, config: Any, weights: dict[str, Any], seeds: list[int], pixels: int
) -> list[FilmedEpisode]:
    """Greedy episodes from `seeds`, replayed under a camera of `pixels` by `pixels`."""
    simulator = make_simulator(config.sim)
    policy, observe = load_policy(run, config, simulator, weights)
    rollout = collect_rollout(policy, simulator.environment(), seeds, 1, observe, greedy=True)
    assert rollout.action is not None
    assert rollout.success is not None
    actions = rollout.action.float().cpu().numpy()
    rows = [np.flatnonzero(rollout.trajectory.numpy() == i) for i in range(len(seeds))]
    large = config.sim.model_copy(update={"image_size": pixels, "cameras": (CAMERA,)})
    replays = episode_viewer(large).replay(seeds, [actions[row] for row in rows])
    return [
        FilmedEpisode(np.stack(one.frames[CAMERA]), bool(success > 0.5))
        for one, success in zip(replays, rollout.success.tolist(), strict=True)
    ]
