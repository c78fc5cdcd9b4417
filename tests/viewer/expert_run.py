"""A run folder with recorded episodes of the scripted expert: one does the task, one has a hand
that is told amiss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import sim
from sim.experts import Expert
from vla.config import load
from vla.data.episode_recording import EpisodeRecording, save_recording

CHUNK, ERROR = 4, 0.012
"""Control steps a decision, and metres a step that the second hand is pushed aside."""


Lived = tuple[list[np.ndarray], list[float], list[bool], list[dict[str, float]]]
"""Actions [decisions, CHUNK, 7], returns, success and measures of some episodes."""


def lived(
    robot: str, seeds: list[int], error: float, image_size: int, reward: dict[str, float]
) -> Lived:
    """What the expert does on some starts, when its hand is pushed aside by `error` metres a
    step."""
    env = sim.make_vector(
        robot=robot, num_envs=len(seeds), image_size=image_size, num_threads=1, reward=reward
    )
    expert, ids = Expert(env, seed=0), np.arange(len(seeds))
    env.reset(seeds, ids, render=False)
    expert.reset(ids)
    actions: list[list[np.ndarray]] = [[] for _ in seeds]
    returns, success, measures = [0.0] * len(seeds), [False] * len(seeds), [{} for _ in seeds]
    while len(ids):
        asked = expert.act(ids)
        asked[:, 1] += error
        result = env.step(asked[:, None], ids, render=False)
        for row, i in enumerate(ids):
            actions[i].append(asked[row])
            returns[i] += float(result.reward[row])
            success[i] = bool(result.success[row])
            measures[i] = {name: float(values[row]) for name, values in result.metrics.items()}
        ids = ids[~(result.terminated | result.truncated)]
    env.close()
    return [chunked(a) for a in actions], returns, success, measures


def chunked(actions: list[np.ndarray]) -> np.ndarray:
    """Whole chunks; what is left of the last stands still."""
    rest = -len(actions) % CHUNK
    return (
        np.concatenate([np.stack(actions), np.zeros((rest, 7), np.float32)])
        .reshape(-1, CHUNK, 7)
        .astype(np.float32)
    )


def make_run(folder: Path, robot: str = "gantry", image_size: int = 32) -> Path:
    """Write `folder` as a run would: policy.json, recordings/rl-000010 of two episodes from each of
    two starts."""
    settings = load([f"sim.robot={robot}", f"sim.image_size={image_size}", "sim.num_threads=1"]).sim
    parts = [lived(robot, [5, 6], error, image_size, settings.reward) for error in (0.0, ERROR)]
    order = [(0, 0), (1, 0), (0, 1), (1, 1)]  # of each start, done well and done badly
    actions, returns, success, measures = (
        [parts[e][kind][i] for e, i in order] for kind in range(4)
    )
    counts = [len(a) for a in actions]
    rows = sum(counts)
    rng = np.random.default_rng(0)
    logprobs = -3 * rng.random((rows, 16), dtype=np.float32)
    reward = np.zeros(rows, np.float32)
    reward[np.cumsum(counts) - 1] = returns
    advantage = np.repeat(np.where(success, 1.0, -1.0), counts).astype(np.float32)[:, None]
    recording = EpisodeRecording(
        "rl",
        10,
        settings.model_dump(mode="json"),
        "sampled",
        seed=np.array([5, 5, 6, 6]),
        group=np.array([0, 0, 1, 1]),
        success=np.array(success),
        measures={"control_steps": np.array([4.0 * c for c in counts], np.float32)}
        | {name: np.array([m[name] for m in measures], np.float32) for name in measures[0]},
        episode=np.repeat(np.arange(4), counts),
        action=np.concatenate(actions),
        reward=reward,
        logprobs=logprobs,
        mask=np.ones((rows, 16), bool),
        values=rng.random(rows, dtype=np.float32),
        advantages=advantage,
        logprobs_after=logprobs + np.float32(0.1) * advantage,
    )
    save_recording(folder / "recordings", recording)
    from sim.spec import DEFAULT_ACTION_SPEC

    (folder / "policy.json").write_text(json.dumps({"action_spec": DEFAULT_ACTION_SPEC.to_dict()}))
    return folder
