"""Readers of the files of a LeRobotDataset v3; errors name the path, the fault and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from vla.data import lerobot_format as form
from vla.data.lerobot_join import column_to_numpy
from vla.files.arrays import column_names, read_table
from vla.files.reading import (
    KEYS,
    DamagedFile,
    JsonMapping,
    JsonObject,
    read_json,
    validate_values,
    validating_file,
)

EPISODES = "meta/episodes/*/*.parquet"
DATA = "data/*/*.parquet"
SUCCESS = ("success", "next.success")
"""Columns that mark success: ours in every frame, LeRobot's in the frame that succeeds."""


@dataclass(frozen=True)
class Columns:
    """The numeric columns of a dataset, one row a frame.

    `episode_end` is the row after the episode's last.
    """

    proprio: Float32[np.ndarray, "M s"]
    actions: Float32[np.ndarray, "M A"]
    perturbed: Bool[np.ndarray, "M"]
    success: Bool[np.ndarray, "M"]
    seed: Int[np.ndarray, "M"]
    episode_index: Int[np.ndarray, "M"]
    episode_end: Int[np.ndarray, "M"]
    task_index: Int[np.ndarray, "M"]


class Feature(TypedDict):
    """A feature of info.json."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    dtype: str
    shape: list[PositiveInt]
    names: NotRequired[list[object] | JsonObject | None]
    info: NotRequired[JsonObject | None]
    video_info: NotRequired[JsonObject | None]


class DatasetInfo(TypedDict):
    """The required keys of meta/info.json."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    features: dict[str, Feature]
    total_frames: NonNegativeInt
    fps: PositiveFloat
    video_path: NotRequired[str | None]


class EpisodeRow(TypedDict):
    """The required columns of meta/episodes."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    episode_index: int
    dataset_from_index: NonNegativeInt
    length: PositiveInt


def read_info(folder: Path) -> JsonObject:
    """`meta/info.json`, checked for the keys that the other readers need.

    Raises:
        ValueError: no dataset, another version, no episodes, or no state or action to learn from.
    """
    path = folder / form.INFO_PATH
    if not path.exists():
        raise ValueError(
            f"{folder} is no LeRobotDataset: {form.INFO_PATH} is missing; make one with "
            "collect_demos.py"
        )
    info = read_json(path, remedy=form.COPY_AGAIN, finite=False)
    version = str(info.get("codebase_version", "unknown"))
    if version.startswith(("v2.", "v1.")):
        raise ValueError(
            f"{folder} is a LeRobotDataset {version}; v3.0 is needed. Convert it with "
            "`python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME "
            f"--root={folder} --push-to-hub=false`"
        )
    if not version.startswith("v3."):
        raise ValueError(
            f"{folder}: codebase_version {version!r} of {form.INFO_PATH} is unknown; v3.0 is needed"
        )
    validate_values(path, info, DatasetInfo, form.COPY_AGAIN)
    for key, use in (
        (form.ACTION_KEY, "there is nothing to imitate"),
        (form.STATE_KEY, "every policy needs a state"),
    ):
        if key not in info["features"]:
            raise ValueError(
                f"{folder} has no feature {key!r}, and {use}: record the dataset again with it"
            )
        if len(info["features"][key]["shape"]) != 1:
            raise ValueError(
                f"{folder}: {key} has shape {list(info['features'][key]['shape'])}; record it as "
                "one row of numbers"
            )
    for key in find_cameras(info).values():
        if len(info["features"][key]["shape"]) != 3:
            raise DamagedFile(
                path,
                f"{key} has shape {info['features'][key]['shape']}, not three sizes",
                form.COPY_AGAIN,
            )
    if not info["total_frames"]:
        raise ValueError(
            f"{folder} holds no episodes: the recording stopped before the first was saved, "
            "record again"
        )
    return info


def find_cameras(info: JsonMapping) -> dict[str, str]:
    """Camera names to feature keys of all colour images; depth maps are left out, as in LeRobot."""
    keys = {}
    for key, feature in info["features"].items():
        if feature["dtype"] in ("image", "video") and not is_depth(feature):
            keys[key.removeprefix(form.IMAGE_PREFIX).removeprefix("observation.")] = key
    return keys


def is_depth(feature: JsonMapping) -> bool:
    """True for a depth map, by LeRobot's mark or its older one."""
    places = [feature.get("info") or {}, feature.get("video_info") or {}]
    return any(place.get("is_depth_map") or place.get("video.is_depth_map") for place in places)


def dimension_names(info: JsonMapping, key: str) -> tuple[str, ...]:
    """One name per dimension, from a list, a mapping of lists ({"motors": [...]}) or of indices
    ({"dx": 0, ...})."""
    feature = info["features"][key]
    names = feature.get("names") or []
    size = int(feature["shape"][0])
    if isinstance(names, Mapping):
        places = all(isinstance(value, int) for value in names.values())
        lists = [value if isinstance(value, list) else [value] for value in names.values()]
        names = (
            sorted(names, key=names.__getitem__)
            if places
            else [name for part in lists for name in part]
        )
    return (
        tuple(map(str, names)) if len(names) == size else tuple(f"{key}_{i}" for i in range(size))
    )


def read_action_spec(folder: Path) -> JsonObject | None:
    """The dataset's own action spec, an extension of LeRobot's format; None where it has none."""
    path = folder / form.ACTION_SPEC_PATH
    return read_json(path, remedy=form.COPY_AGAIN, finite=False) if path.exists() else None


def read_episodes(folder: Path) -> list[JsonObject]:
    """The rows of meta/episodes without statistics: length and place of every episode."""
    rows: list[JsonObject] = []
    for path in _parts(folder, EPISODES):
        names = [
            name for name in column_names(path, form.COPY_AGAIN) if not name.startswith("stats/")
        ]
        rows += validate_values(
            path,
            read_table(path, names, form.COPY_AGAIN).to_pylist(),
            list[EpisodeRow],
            form.COPY_AGAIN,
        )
    return sorted(rows, key=lambda row: row["episode_index"])


def read_tasks(folder: Path, task_index: Int[np.ndarray, "M"]) -> dict[int, str]:
    """The instruction of every task index that a frame has.

    Raises ValueError where one is missing.
    """
    path = folder / form.TASKS_PATH
    if not path.exists():
        raise ValueError(f"{path} is missing, and it holds the instructions: {form.COPY_AGAIN}")
    table = read_table(path, remedy=form.COPY_AGAIN)
    # The instruction is pandas' index: called "task", or "__index_level_0__" by older writers.
    instruction = next((name for name in table.schema.names if name != "task_index"), None)
    if instruction is None or "task_index" not in table.schema.names:
        raise ValueError(
            f"{path} must hold a task_index and its instruction, it holds {table.schema.names}"
        )
    by_index = dict(
        zip(table["task_index"].to_pylist(), table[instruction].to_pylist(), strict=True)
    )
    named, counts = np.unique(task_index, return_counts=True)
    for index, count in zip(named.tolist(), counts.tolist(), strict=True):
        if not isinstance(by_index.get(index), str):
            raise ValueError(
                f"{path} has no instruction for task {index}, which {count} frames name (it has "
                f"{sorted(by_index)}): "
                "add the task there, or delete its episodes with LeRobot's lerobot-edit-dataset"
            )
    return by_index


def read_columns(folder: Path, info: JsonMapping | None = None) -> Columns:
    """The numeric columns of every frame, without images.

    Raises:
        ValueError: no dataset v3, or files that are missing, damaged or inconsistent.
    """
    info = read_info(folder) if info is None else info
    required = {form.STATE_KEY, form.ACTION_KEY, "episode_index", "task_index", "index"}
    readable = required | {"perturbed", "seed", *SUCCESS}
    names = [name for name in info["features"] if name in readable]
    table = read_table(_parts(folder, DATA), sorted(required | set(names)), form.COPY_AGAIN)
    total = int(info["total_frames"])
    columns = {name: _column(folder, table, name) for name in names}
    if len(table) != total or not np.array_equal(columns["index"], np.arange(total)):
        raise DamagedFile(
            folder / "data",
            f"its rows are not 0 to {total - 1}, as {form.INFO_PATH} says",
            form.COPY_AGAIN,
        )
    episode = columns["episode_index"]
    if len(np.unique(episode)) != np.count_nonzero(np.diff(episode)) + 1:
        raise DamagedFile(
            folder / "data", "the frames of an episode do not follow each other", form.COPY_AGAIN
        )
    starts = np.concatenate([[0], np.flatnonzero(np.diff(episode)) + 1, [total]])
    none_perturbed = np.zeros(total, dtype=bool)
    return Columns(
        proprio=_numbers(folder, info, form.STATE_KEY, columns),
        actions=_numbers(folder, info, form.ACTION_KEY, columns),
        perturbed=columns.get("perturbed", none_perturbed).astype(bool),
        success=_success(columns, starts),
        seed=columns.get("seed", np.full(total, -1)).astype(np.int64),
        episode_index=episode,
        episode_end=np.repeat(starts[1:], np.diff(starts)),
        task_index=columns["task_index"],
    )


def read_statistics(folder: Path, columns: Columns) -> form.Statistics:
    """The stored statistics, with those of actions and state recomputed because stored ones may be
    stale."""
    path = folder / form.STATS_PATH
    stored = (
        read_json(path, dict[str, JsonObject], form.COPY_AGAIN, finite=False)
        if path.exists()
        else {}
    )
    with validating_file(path, form.COPY_AGAIN):
        statistics = {
            key: {n: np.asarray(v) for n, v in values.items()} for key, values in stored.items()
        }
    own = ((form.ACTION_KEY, columns.actions), (form.STATE_KEY, columns.proprio))
    return statistics | {key: form.column_statistics(values) for key, values in own}


def _column(folder: Path, table: pa.Table, name: str) -> np.ndarray:
    """A column with one row a frame; index columns must be whole numbers without gaps."""
    with validating_file(f"{folder / 'data'}, column {name},", form.COPY_AGAIN):
        values = column_to_numpy(table.column(name))
        if name.endswith("index") and values.dtype.kind not in "iu":
            raise ValueError("it holds something other than whole numbers")
        return values


def _numbers(
    folder: Path, info: JsonMapping, key: str, columns: Mapping[str, np.ndarray]
) -> Float32[np.ndarray, "M d"]:
    """A column of state or action as float32, converted from any stored number type."""
    size = int(info["features"][key]["shape"][0])
    with np.errstate(
        over="ignore"
    ):  # numbers beyond float32 become infinite; a later check refuses them
        try:
            return columns[key].astype(np.float32).reshape(len(columns["index"]), size)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{folder}: column {key} is no row of {size} numbers a frame ({error})"
            ) from error


def _success(columns: Mapping[str, np.ndarray], starts: np.ndarray) -> Bool[np.ndarray, "M"]:
    """Success of every frame's episode; True where the dataset has no such column."""
    marked = next(
        (columns[name].astype(bool).reshape(-1) for name in SUCCESS if name in columns), None
    )
    if marked is None:
        return np.ones(starts[-1], dtype=bool)
    return np.repeat(np.logical_or.reduceat(marked, starts[:-1]), np.diff(starts))


def _parts(folder: Path, pattern: str) -> Sequence[Path]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise ValueError(f"{folder} has no {pattern}: {form.COPY_AGAIN}")
    return paths
