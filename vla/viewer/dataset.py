"""Recorded episodes as a LeRobotDataset: lived again and written with pictures, to train on or look
at elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla.data.collection import PROPRIO_NAMES
from vla.data.lerobot_format import DatasetSpec
from vla.data.lerobot_writer import Episode, LeRobotWriter
from vla.viewer.library import EpisodeLibrary
from vla.viewer.payload import ReplayedEpisode, episode_actions


def write_dataset(library: EpisodeLibrary, folder: Path, limit: int, only_successes: bool) -> int:
    """Write the newest `limit` episodes, one of each start (a success where there is one); how many
    they were.

    Raises ValueError when the folder exists already, there is nothing to write, or an episode was
    recorded in another simulator and comes to another end.
    """
    chosen = select_one_per_start(
        [line for line in library.summaries() if line["success"] or not only_successes]
    )[:limit]
    if not chosen:
        raise ValueError(
            f"{library.run} holds no {'success' if only_successes else 'episode'} to write"
        )
    writer = None
    for line in chosen:
        name, _, number = line["id"].rpartition("/")
        recording = library.recordings[library.run / f"{name}.safetensors"]
        (lived,) = library.replayer(
            recording.sim, [line["seed"]], [episode_actions(recording)[int(number)]]
        )
        if lived.success != line["success"]:
            raise ValueError(
                f"{line['id']} comes to another end in this simulator: it has changed since"
            )
        episode = episode_from_replay(
            lived, episode_actions(recording)[int(number)], line["seed"], library.spec
        )
        writer = writer or LeRobotWriter(
            folder, dataset_spec_from_run(library, recording.sim, episode)
        )
        writer.add(episode)
    assert writer is not None
    print(f"{writer.finish()}: {len(chosen)} episodes, one of each start")
    return len(chosen)


def select_one_per_start(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first line of every start, a success before a failure."""
    found: dict[int, Mapping[str, Any]] = {}
    for line in lines:
        if line["seed"] not in found or (line["success"] and not found[line["seed"]]["success"]):
            found[line["seed"]] = line
    return list(found.values())


def episode_from_replay(
    lived: ReplayedEpisode, actions: np.ndarray, seed: int, spec: Mapping[str, Any]
) -> Episode:
    """What was seen before every control step, and what was done: actions as the environment
    clipped them."""
    count = len(lived.reward)
    done = np.clip(np.concatenate(list(actions))[:count], spec["low"], spec["high"]).astype(
        np.float32
    )
    felt = np.concatenate([np.stack(lived.commanded), np.array(lived.opening)[:, None]], axis=1)
    return Episode(
        images={camera: np.stack(pictures[:count]) for camera, pictures in lived.frames.items()},
        proprio=felt[:count].astype(np.float32),
        actions=done,
        perturbed=np.zeros(count, dtype=bool),
        instruction=lived.instruction,
        seed=seed,
        success=lived.success,
    )


def dataset_spec_from_run(
    library: EpisodeLibrary, sim: Mapping[str, Any], episode: Episode
) -> DatasetSpec:
    """What the dataset says of itself."""
    pictures = next(iter(episode.images.values()))
    return DatasetSpec(
        fps=round(library.spec["control_hz"]),
        robot=sim["robot"],
        cameras=tuple(episode.images),
        image_size=pictures.shape[1:3],
        proprio_names=PROPRIO_NAMES,
        action_names=tuple(library.spec["names"]),
        action_spec=library.spec,
        source={
            "task": sim.get("task", sim["robot"]),
            "robot": sim["robot"],
            "rollouts_of": library.run.name,
        },
        storage="video",
    )
