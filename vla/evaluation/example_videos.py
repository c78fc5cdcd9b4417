"""Videos of the first successes and failures of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from vla.evaluation.result import EvaluationResult
from vla.evaluation.video import write_video
from vla.rl.protocols import Observe, Policy


@dataclass(frozen=True)
class EpisodeFrames:
    """One rendered episode: uint8 [T, h, w, 3] by camera, with instruction and success."""

    seed: int
    instruction: str
    success: bool
    frames: dict[str, np.ndarray]


def write_example_videos(
    policy: Policy,
    make_recorder: Callable[[int], Any],
    observe: Observe,
    result: EvaluationResult,
    seeds: Int[np.ndarray, "n"],
    count: int,
    folder: Path,
    prefix: str = "",
) -> list[tuple[EpisodeFrames, Path]]:
    """Write videos of the first `count` successes and failures of `result`; episodes and files.

    `seeds` are the items of `result`. Files are `PREFIXwin-SEED.mp4` and `PREFIXfailure-SEED.mp4`.
    """
    success = result.success
    examples = [
        int(seed) for verdict in (True, False) for seed in seeds[success == verdict][:count]
    ]
    videos = []
    for episode in record_episodes(policy, make_recorder, examples, observe):
        verdict = "win" if episode.success else "failure"
        path = folder / f"{prefix}{verdict}-{episode.seed}.mp4"
        write_video(path, episode.frames, episode.instruction, episode.success)
        videos.append((episode, path))
    return videos


@torch.no_grad()
def record_episodes(
    policy: Policy,
    make_recorder: Callable[[int], Any],
    seeds: Sequence[int],
    observe: Observe,
) -> Iterator[EpisodeFrames]:
    """Run greedy episodes from `seeds`, with images after every control step."""
    if not seeds:
        return
    recorder = make_recorder(len(seeds))
    ids = np.arange(len(seeds))
    observation = recorder.reset(seeds, ids)
    instructions = list(observation.instruction)
    frames = [{name: [images[i]] for name, images in observation.images.items()} for i in ids]
    success = np.zeros(len(seeds), dtype=bool)
    running = ids
    while len(running):
        action = policy.act(observe(observation), greedy=True).action.float().cpu().numpy()
        result = recorder.step(action, running)
        for row, env in enumerate(running):
            for camera, pictures in result.frames.items():
                frames[env][camera].extend(pictures[row, : result.num_steps[row]])
        success[running] = result.success
        running = running[~(result.terminated | result.truncated)]
        observation = recorder.observe(running) if len(running) else observation
    for i, seed in enumerate(seeds):
        pictures = {camera: np.stack(images) for camera, images in frames[i].items()}
        yield EpisodeFrames(int(seed), instructions[i], bool(success[i]), pictures)
