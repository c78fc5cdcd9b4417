"""The LeRobotDataset v3 format, as LeRobot 0.6 reads it: names, features, parquet schemas,
statistics.

A dataset is a folder. `meta/info.json` holds features, counts and path patterns; `meta/stats.json`
and `meta/tasks.parquet` the statistics and instructions. `meta/episodes/*.parquet` has one row an
episode. `data/*.parquet` has one row a frame and one row group an episode. Images stored as video
are in `videos/<key>/*.mp4`, many episodes in a file. Source: huggingface/lerobot,
`lerobot/datasets` (codebase version v3.0).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from vla.files.reading import JsonMapping, JsonObject

VERSION = "v3.0"
IMAGE_PREFIX = "observation.images."
STATE_KEY = "observation.state"
ACTION_KEY = "action"
COPY_AGAIN = "the dataset is damaged, copy or download it again"
"""The remedy where a file of a dataset is missing or cannot be read."""
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
ACTION_SPEC_PATH = "meta/action_spec.json"
SOURCE_PATH = "meta/source.json"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
MAX_DATA_BYTES = 100 * 2**20
MAX_VIDEO_BYTES = 200 * 2**20
"""A file larger than this is closed; the next episode begins another."""

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_EXTRA = {"perturbed": "bool", "seed": "int64", "success": "bool"}
_INDICES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_ARROW = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}

Storage = Literal["video", "images"]
Statistics = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class DatasetSpec:
    """The facts that all episodes of a dataset share.

    Attributes:
        fps: control steps, and so frames, per second.
        robot: name of the robot.
        cameras: camera names; the feature is `observation.images.<camera>`.
        image_size: height and width, pixels.
        proprio_names, action_names: one name per dimension.
        action_spec: units, frame, limits ... of an action; written to `meta/action_spec.json`.
        source: origin of the episodes (task, first seed ...); written to `meta/source.json`.
        storage: "video" for lossless H.264, "images" for PNG inside the parquet files.
    """

    fps: int
    robot: str
    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    proprio_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_spec: JsonMapping
    source: JsonMapping
    storage: Storage

    def to_dict(self) -> JsonObject:
        """Plain values, equal to those after a round trip through JSON."""
        return json.loads(json.dumps(asdict(self)))


def image_key(camera: str) -> str:
    """The feature of a camera's images."""
    return IMAGE_PREFIX + camera


def describe_features(spec: DatasetSpec) -> dict[str, JsonObject]:
    """The `features` of `meta/info.json`."""
    height, width = spec.image_size
    described: dict[str, JsonObject] = {}
    for camera in spec.cameras:
        feature: JsonObject = {
            "dtype": "image",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
        }
        if spec.storage == "video":
            feature |= {"dtype": "video", "info": _video_info(spec)}
        described[image_key(camera)] = feature
    described[STATE_KEY] = {
        "dtype": "float32",
        "shape": [len(spec.proprio_names)],
        "names": list(spec.proprio_names),
    }
    described[ACTION_KEY] = {
        "dtype": "float32",
        "shape": [len(spec.action_names)],
        "names": list(spec.action_names),
    }
    for name, dtype in (_EXTRA | _INDICES).items():
        described[name] = {"dtype": dtype, "shape": [1], "names": None}
    return described


def _video_info(spec: DatasetSpec) -> JsonObject:
    height, width = spec.image_size
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": "gbrp",
        "video.fps": spec.fps,
        "video.channels": 3,
        "has_audio": False,
        "is_depth_map": False,
    }


def build_info(spec: DatasetSpec, num_episodes: int, num_frames: int, num_tasks: int) -> JsonObject:
    """The content of `meta/info.json`."""
    return {
        "codebase_version": VERSION,
        "fps": spec.fps,
        "features": describe_features(spec),
        "total_episodes": num_episodes,
        "total_frames": num_frames,
        "total_tasks": num_tasks,
        "chunks_size": 1000,
        "data_files_size_in_mb": MAX_DATA_BYTES // 2**20,
        "video_files_size_in_mb": MAX_VIDEO_BYTES // 2**20,
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if spec.storage == "video" else None,
        "robot_type": spec.robot,
        "splits": {"train": f"0:{num_episodes}"},
    }


def frame_schema(spec: DatasetSpec) -> pa.Schema:
    """The schema of the data files, with the metadata of the `datasets` library."""
    fields = []
    described: dict[str, JsonObject] = {}
    for key, feature in describe_features(spec).items():
        if feature["dtype"] == "video":
            continue
        if feature["dtype"] == "image":
            fields.append(pa.field(key, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
            described[key] = {"_type": "Image"}
            continue
        value = {"dtype": feature["dtype"], "_type": "Value"}
        if key in (STATE_KEY, ACTION_KEY):
            size = feature["shape"][0]
            fields.append(
                pa.field(key, pa.list_(pa.field("element", _ARROW[feature["dtype"]]), size))
            )
            described[key] = {"feature": value, "length": size, "_type": "List"}
        else:
            fields.append(pa.field(key, _ARROW[feature["dtype"]]))
            described[key] = value
    return pa.schema(
        fields, metadata={"huggingface": json.dumps({"info": {"features": described}})}
    )


def build_tasks_table(tasks: Sequence[str]) -> pa.Table:
    """`meta/tasks.parquet`; the instruction is the pandas index."""
    columns = [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {
            "name": "task",
            "field_name": "task",
            "pandas_type": "unicode",
            "numpy_type": "object",
            "metadata": None,
        },
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "attributes": {}}
    table = pa.table(
        {
            "task_index": pa.array(range(len(tasks)), pa.int64()),
            "task": pa.array(tasks, pa.string()),
        }
    )
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def column_statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of a numeric column [n] or [n, d] per dimension.

    Quantiles interpolate linearly.
    """
    columns = values.reshape(len(values), -1).astype(np.float64)
    quantiles = np.quantile(columns, list(QUANTILES.values()), axis=0)
    return {
        "min": columns.min(axis=0),
        "max": columns.max(axis=0),
        "mean": columns.mean(axis=0),
        "std": columns.std(axis=0),
        "count": np.array([len(columns)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def channel_histogram(images: np.ndarray) -> np.ndarray:
    """Counts [3, 256] of each channel's values in uint8 [n, h, w, 3], at every second row and
    column."""
    pixels = images[:, ::2, ::2].reshape(-1, 3)
    return np.stack([np.bincount(pixels[:, channel], minlength=256) for channel in range(3)])


def image_statistics(histogram: np.ndarray, num_frames: int) -> dict[str, np.ndarray]:
    """Statistics of a camera from its histogram [3, 256]: channels first, values in [0, 1], shape
    [3, 1, 1]."""
    levels = np.arange(256) / 255.0
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ levels
    cumulative = np.cumsum(share, axis=1)
    occurs = histogram > 0
    result = {
        "min": levels[occurs.argmax(axis=1)],
        "max": levels[255 - occurs[:, ::-1].argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0.0)),
    }
    for name, quantile in QUANTILES.items():
        result[name] = levels[(cumulative >= quantile - 1e-12).argmax(axis=1)]
    return {name: value.reshape(3, 1, 1) for name, value in result.items()} | {
        "count": np.array([num_frames])
    }


def statistics_to_json(statistics: Statistics) -> str:
    """The content of `meta/stats.json`."""
    return json.dumps(
        {
            key: {name: v.tolist() for name, v in values.items()}
            for key, values in statistics.items()
        }
    )
