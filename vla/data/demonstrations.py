"""Demonstrations to learn from: any LeRobotDataset v3, with fast random access to frames and the actions after them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int, UInt8

from vla.data import lerobot_format as form
from vla.data.frame_cache import cached_frames
from vla.data.lerobot_join import column_to_numpy


@dataclass(frozen=True)
class DemonstrationBatch:
    """B frames, each with the chunk of `H` actions that begins there.

    `action_mask` is True for actions to learn from: inside the episode and not perturbed.
    """

    images: Mapping[str, UInt8[np.ndarray, "B h w 3"]]
    proprio: Float32[np.ndarray, "B s"]
    actions: Float32[np.ndarray, "B H A"]
    action_mask: Bool[np.ndarray, "B H"]
    instruction: list[str]


@dataclass(frozen=True)
class Columns:
    """One row a frame of the whole dataset: `episode_end` is the row after the last of its episode."""

    proprio: Float32[np.ndarray, "M s"]
    actions: Float32[np.ndarray, "M A"]
    perturbed: Bool[np.ndarray, "M"]
    success: Bool[np.ndarray, "M"]
    seed: Int[np.ndarray, "M"]
    episode_index: Int[np.ndarray, "M"]
    episode_end: Int[np.ndarray, "M"]
    task_index: Int[np.ndarray, "M"]


@dataclass(frozen=True)
class Demonstrations:
    """Some or all episodes of a dataset; frames are numbered 0 to `num_frames` - 1 among those.

    Attributes:
        folder: of the dataset.
        cameras: camera names.
        fps: frames, and so control steps, per second.
        robot: name of the robot, if the dataset says.
        proprio_names, action_names: one name per dimension.
        action_spec: what an action means, if the dataset says.
        statistics: per feature ("action", "observation.state", ...) min, max, mean, std, q01 ... q99 of the dataset.
        instructions: the tasks, by task index.
        columns, frames: every row of the dataset, and its images uint8 [M, h, w, 3] by camera.
        rows: the rows [num_frames] that belong to the chosen episodes.
    """

    folder: Path
    cameras: tuple[str, ...]
    fps: float
    robot: str | None
    proprio_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_spec: Mapping[str, Any] | None
    statistics: form.Statistics
    instructions: tuple[str, ...]
    columns: Columns
    frames: Mapping[str, np.ndarray]
    rows: Int[np.ndarray, "N"]

    @property
    def num_frames(self) -> int:
        return len(self.rows)

    @property
    def num_episodes(self) -> int:
        return len(self.episodes)

    @property
    def episodes(self) -> Int[np.ndarray, "n"]:
        """The chosen episodes' indices, ascending."""
        return np.unique(self.episode_index)

    @property
    def episode_index(self) -> Int[np.ndarray, "N"]:
        """The episode of every frame."""
        return self.columns.episode_index[self.rows]

    def batch(self, indices: Sequence[int] | Int[np.ndarray, "B"], horizon: int) -> DemonstrationBatch:
        """The frames `indices`, in any order and repeated at will, each with its next `horizon` actions.

        Past its episode's end a chunk repeats the last action, with the mask False.
        """
        if horizon < 1:
            raise ValueError(f"policy.chunk ({horizon}) must be at least 1")
        columns = self.columns
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        steps = rows[:, None] + np.arange(horizon)
        inside = steps < columns.episode_end[rows][:, None]
        steps = np.minimum(steps, columns.episode_end[rows][:, None] - 1)
        return DemonstrationBatch(
            images={camera: frames[rows] for camera, frames in self.frames.items()},
            proprio=columns.proprio[rows],
            actions=columns.actions[steps],
            action_mask=inside & ~columns.perturbed[steps],
            instruction=[self.instructions[task] for task in columns.task_index[rows]],
        )

    def choose(self, episodes: Sequence[int] | Int[np.ndarray, "n"]) -> Demonstrations:
        """Only these episodes."""
        unknown = set(np.asarray(episodes).tolist()) - set(self.episodes.tolist())
        if unknown:
            raise ValueError(f"{self.folder} has no episodes {sorted(unknown)} among the chosen {self.num_episodes}")
        return replace(self, rows=self.rows[np.isin(self.episode_index, episodes)])

    def split(self, fraction: float, seed: int) -> tuple[Demonstrations, Demonstrations]:
        """Two disjoint sets of whole episodes, the second with `fraction` of them (at least one)."""
        if not 0.0 < fraction < 1.0 or self.num_episodes < 2:
            raise ValueError(
                f"data.holdout ({fraction}) must lie between 0 and 1, and the dataset's {self.num_episodes} episodes "
                f"must be at least 2"
            )
        shuffled = np.random.default_rng(seed).permutation(self.episodes)
        count = min(max(1, round(fraction * len(shuffled))), len(shuffled) - 1)
        return self.choose(np.sort(shuffled[count:])), self.choose(np.sort(shuffled[:count]))


def open_demonstrations(
    folder: str | Path,
    *,
    cameras: Sequence[str] | None = None,
    action_spec: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    cache: str | Path | None = None,
) -> Demonstrations:
    """Open a LeRobotDataset v3 folder; the first time, its images are decoded into a cache.

    Args:
        folder: the dataset.
        cameras: the cameras to load, in this order; None for all.
        action_spec: what the caller's actions mean; the dataset must agree in every field it states.
        image_size: resize images to this height and width; None keeps them.
        cache: where decoded frames are kept; None for a hidden folder inside the dataset.

    Raises:
        ValueError: no dataset there, another version, or cameras or an action spec that differ, naming the field.
    """
    folder = Path(folder)
    info = _read_info(folder)
    keys = _chosen_cameras(folder, info, cameras)
    stated = folder / form.ACTION_SPEC_PATH
    spec = json.loads(stated.read_text()) if stated.exists() else None
    action_names = _names(info, form.ACTION_KEY)
    if action_spec is not None:
        stated_fields = spec if spec is not None else {"names": list(action_names), "control_hz": info["fps"]}
        check_action_spec(stated_fields, action_spec, f"the dataset {folder}")
    episodes = _read_episodes(folder)
    columns = _read_columns(folder, info)
    decoded = cached_frames(folder, info, episodes, list(keys.values()), image_size, Path(cache) if cache else None)
    return Demonstrations(
        folder=folder,
        cameras=tuple(keys),
        fps=info["fps"],
        robot=info.get("robot_type"),
        proprio_names=_names(info, form.STATE_KEY),
        action_names=action_names,
        action_spec=spec,
        statistics=_read_statistics(folder, columns),
        instructions=_read_tasks(folder),
        columns=columns,
        frames={camera: decoded[key] for camera, key in keys.items()},
        rows=np.arange(len(columns.actions)),
    )


def read_columns(folder: Path) -> Columns:
    """The numbers of every frame, without its images; ValueError when there is no dataset v3."""
    return _read_columns(folder, _read_info(folder))


def check_action_spec(found: Mapping[str, Any], expected: Mapping[str, Any], owner: str) -> None:
    """Hold two action specs against each other, field by field; fields that `found` does not state pass.

    Raises:
        ValueError: naming the first field that differs, with both values.
    """
    mine, theirs = json.loads(json.dumps(dict(expected))), json.loads(json.dumps(dict(found)))
    for field, value in mine.items():
        if field in theirs and theirs[field] != value:
            raise ValueError(
                f"action spec: {field} is {theirs[field]!r} in {owner}, but {value!r} is expected. "
                f"Collect the demonstrations again with these settings, or use a model and environment that fit them"
            )


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / form.INFO_PATH
    if not path.exists():
        raise ValueError(f"{folder} is no LeRobotDataset: {form.INFO_PATH} is missing; make one with collect_demos.py")
    try:
        info = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    version = str(info.get("codebase_version", "unknown"))
    if version.startswith(("v2.", "v1.")):
        raise ValueError(
            f"{folder} is a LeRobotDataset {version}; v3.0 is needed. Convert it with "
            f"`python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME --root={folder} --push-to-hub=false`"
        )
    if not version.startswith("v3."):
        raise ValueError(f"{folder}: codebase_version {version!r} of {form.INFO_PATH} is not known; v3.0 is")
    if form.ACTION_KEY not in info["features"]:
        raise ValueError(f"{folder} has no feature {form.ACTION_KEY!r}: there is nothing to imitate")
    return info


def _chosen_cameras(folder: Path, info: Mapping[str, Any], wanted: Sequence[str] | None) -> dict[str, str]:
    """Camera name -> feature key, in the wanted order."""
    keys = {}
    for key, feature in info["features"].items():
        depth = (feature.get("info") or {}).get("is_depth_map", False)
        if feature["dtype"] in ("image", "video") and not depth:
            keys[key.removeprefix(form.IMAGE_PREFIX).removeprefix("observation.")] = key
    missing = [camera for camera in wanted or () if camera not in keys]
    if missing:
        raise ValueError(
            f"cameras: {', '.join(missing)} wanted, but the dataset {folder} has {', '.join(keys) or 'none'}. "
            f"Set sim.cameras to cameras that it has, or collect the demonstrations again"
        )
    return {camera: keys[camera] for camera in (keys if wanted is None else wanted)}


def _names(info: Mapping[str, Any], key: str) -> tuple[str, ...]:
    feature = info["features"].get(key)
    if feature is None:
        return ()
    names = feature.get("names")
    if isinstance(names, Mapping):  # {"motors": [...]} and the like
        names = next(iter(names.values()))
    size = int(feature["shape"][0])
    return tuple(names) if names and len(names) == size else tuple(f"{key}_{i}" for i in range(size))


def _read_episodes(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("meta/episodes/*/*.parquet")):
        names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
        rows += pq.read_table(path, columns=names).to_pylist()
    return sorted(rows, key=lambda row: row["episode_index"])


def _read_tasks(folder: Path) -> tuple[str, ...]:
    table = pq.read_table(folder / form.TASKS_PATH)
    # The instruction is pandas' index: called "task", or "__index_level_0__" by older writers.
    instruction = next(name for name in table.schema.names if name != "task_index")
    by_index = dict(zip(table["task_index"].to_pylist(), table[instruction].to_pylist(), strict=True))
    return tuple(by_index[index] for index in range(len(by_index)))


def _read_columns(folder: Path, info: Mapping[str, Any]) -> Columns:
    wanted = {form.STATE_KEY, form.ACTION_KEY, "episode_index", "task_index", "index", "perturbed", "success", "seed"}
    names = [name for name in info["features"] if name in wanted]
    paths = sorted(folder.glob("data/*/*.parquet"))
    table = pa.concat_tables([pq.read_table(path, columns=names) for path in paths])
    columns = {name: column_to_numpy(table.column(name)) for name in names}
    total = int(info["total_frames"])
    if not np.array_equal(columns["index"], np.arange(total)):
        raise ValueError(f"{folder}: the data files hold rows other than 0 to {total - 1}; the dataset is damaged")
    episode = columns["episode_index"]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(episode)) + 1, [total]])
    nothing = np.zeros(total, dtype=bool)
    return Columns(
        proprio=columns.get(form.STATE_KEY, np.zeros((total, 0))).astype(np.float32).reshape(total, -1),
        actions=columns[form.ACTION_KEY].astype(np.float32).reshape(total, -1),
        perturbed=columns.get("perturbed", nothing).astype(bool),
        success=columns.get("success", ~nothing).astype(bool),
        seed=columns.get("seed", np.full(total, -1)).astype(np.int64),
        episode_index=episode,
        episode_end=np.repeat(starts[1:], np.diff(starts)),
        task_index=columns["task_index"],
    )


def _read_statistics(folder: Path, columns: Columns) -> form.Statistics:
    """The dataset's own, with those of actions and proprio computed where it lacks quantiles."""
    path = folder / form.STATS_PATH
    stored = json.loads(path.read_text()) if path.exists() else {}
    statistics = {key: {n: np.asarray(v) for n, v in values.items()} for key, values in stored.items()}
    for key, values in ((form.ACTION_KEY, columns.actions), (form.STATE_KEY, columns.proprio)):
        if "q01" not in statistics.get(key, {}) and values.shape[1]:
            statistics[key] = form.column_statistics(values)
    return statistics
