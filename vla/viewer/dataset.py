"""Export of recorded episodes as a LeRobotDataset: replayed, with images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla.data.collection import PROPRIO_NAMES
from vla.data.lerobot_format import DatasetSpec
from vla.data.lerobot_writer import Episode, LeRobotWriter
from vla.files.reading import JsonMapping
from vla.viewer.library import EpisodeLibrary
from vla.viewer.payload import ReplayedEpisode, episode_actions


def write_dataset(library: EpisodeLibrary, folder: Path, limit: int, only_successes: bool) -> int:
    """Write the newest `limit` episodes, one for each start (a success where there is one); their
    number.

    Raises ValueError where the folder exists, no episode qualifies, or a replay has another outcome
    than the recording.
    """
    selected = select_one_per_start(
        [line for line in library.summaries() if line["success"] or not only_successes]
    )[:limit]
    if not selected:
        raise ValueError(
            f"{library.run} holds no {'success' if only_successes else 'episode'} to write"
        )
    writer = None
    for line in selected:
        name, _, number = line["id"].rpartition("/")
        recording = library.recordings[library.run / f"{name}.safetensors"]
        (replay,) = library.replayer(
            recording.sim, [line["seed"]], [episode_actions(recording)[int(number)]]
        )
        if replay.success != line["success"]:
            raise ValueError(
                f"{line['id']} has another outcome when replayed: the simulator has changed since"
            )
        episode = episode_from_replay(
            replay, episode_actions(recording)[int(number)], line["seed"], library.spec
        )
        writer = writer or LeRobotWriter(
            folder, dataset_spec_from_run(library, recording.sim, episode)
        )
        writer.add(episode)
    assert writer is not None
    print(f"{writer.finish()}: {len(selected)} episodes, one of each start")
    return len(selected)


def select_one_per_start(lines: Sequence[JsonMapping]) -> list[JsonMapping]:
    """The first episode of every start, a success before a failure."""
    by_seed: dict[int, JsonMapping] = {}
    for line in lines:
        if line["seed"] not in by_seed or (
            line["success"] and not by_seed[line["seed"]]["success"]
        ):
            by_seed[line["seed"]] = line
    return list(by_seed.values())


def episode_from_replay(
    replay: ReplayedEpisode, actions: np.ndarray, seed: int, spec: JsonMapping
) -> Episode:
    """The observations and actions of a replay; actions as the environment clipped them."""
    count = len(replay.reward)
    clipped = np.clip(np.concatenate(list(actions))[:count], spec["low"], spec["high"]).astype(
        np.float32
    )
    proprio = np.concatenate(
        [np.stack(replay.commanded), np.array(replay.opening)[:, None]], axis=1
    )
    return Episode(
        images={camera: np.stack(pictures[:count]) for camera, pictures in replay.frames.items()},
        proprio=proprio[:count].astype(np.float32),
        actions=clipped,
        perturbed=np.zeros(count, dtype=bool),
        instruction=replay.instruction,
        seed=seed,
        success=replay.success,
    )


def dataset_spec_from_run(
    library: EpisodeLibrary, sim: JsonMapping, episode: Episode
) -> DatasetSpec:
    """The spec of the exported dataset."""
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
