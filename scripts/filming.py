"""Films of a run: held-out starts before and after reinforcement learning, rendered again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vla.evaluation.checkpoint_settings import checkpoint_settings
from vla.evaluation.result import stage_result
from vla.files.reading import read_json
from vla.pipelines.robot.policy import find_weights, load_policy
from vla.policy_spec import read_policy_spec
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
    stages = read_json(run / "results.json", remedy="finish the run first").get("stages", {})
    rates: dict[str, SuccessRate] = {}
    for name, title in TITLES.items():
        result = stage_result(stages, name, "greedy")
        if result is None:
            raise ValueError(f"{run} has no evaluation {title}: finish a run with RL")
        rates[name] = result.success_rate
    config = checkpoint_settings(run, [f"sim.num_envs={num_starts}"])
    seeds = [config.evaluation.eval_seeds.first + i for i in range(num_starts)]
    halves = []
    for name, title in TITLES.items():
        episodes = film_starts(run, config, evaluated_weights(run, name), seeds, pixels)
        halves.append(Half(title, rates[name], episodes))
    control_hz = read_policy_spec(run)["action_spec"]["control_hz"]
    return write_film(output, halves, control_hz)


def evaluated_weights(run: Path, name: str) -> dict[str, Any]:
    """The weights of the evaluation `name` (before or after)."""
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
        FilmedEpisode(np.stack(replay.frames[CAMERA]), bool(success > 0.5))
        for replay, success in zip(replays, rollout.success.tolist(), strict=True)
    ]
