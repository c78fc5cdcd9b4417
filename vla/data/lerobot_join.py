"""Joining of episode shards into a LeRobotDataset v3; video packets are copied without encoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla.data import lerobot_format as form
from vla.files.arrays import read_table, translating_library_errors
from vla.files.reading import KEYS, JsonObject, read_json
from vla.files.writing import write_json


class Shard(TypedDict):
    """The episode.json of a shard; histograms [channel][value] by camera."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    instruction: str
    length: int
    histograms: dict[str, list[list[int]]]


def read_shard(shard: Path) -> JsonObject:
    """The instruction, length and histograms of a shard."""
    return read_json(
        shard / "episode.json", Shard, f"remove {shard}: its episode is collected again"
    )


def join_shards(shards: Sequence[Path], spec: form.DatasetSpec, folder: Path) -> None:
    """Write the dataset of `shards`, one folder an episode, in their order."""
    about = [read_shard(shard) for shard in shards]
    tasks = list(dict.fromkeys(episode["instruction"] for episode in about))
    lengths = [episode["length"] for episode in about]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows: list[JsonObject] = []
    for index, episode in enumerate(about):
        rows.append(
            {
                "episode_index": index,
                "tasks": [episode["instruction"]],
                "length": lengths[index],
                "dataset_from_index": int(starts[index]),
                "dataset_to_index": int(starts[index + 1]),
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )
    columns = _join_rows(
        shards, spec, folder, rows, [tasks.index(episode["instruction"]) for episode in about]
    )
    if spec.storage == "video":
        for camera in spec.cameras:
            _join_videos(
                [shard / f"{camera}.mp4" for shard in shards],
                form.image_key(camera),
                spec.fps,
                folder,
                rows,
            )
    histograms = {
        c: np.array([episode["histograms"][c] for episode in about]) for c in spec.cameras
    }
    for index, row in enumerate(rows):
        part = slice(row["dataset_from_index"], row["dataset_to_index"])
        statistics = {key: form.column_statistics(values[part]) for key, values in columns.items()}
        for camera in spec.cameras:
            statistics[form.image_key(camera)] = form.image_statistics(
                histograms[camera][index], lengths[index]
            )
        row |= {
            f"stats/{key}/{name}": v.tolist()
            for key, stats in statistics.items()
            for name, v in stats.items()
        }
    overall = {key: form.column_statistics(values) for key, values in columns.items()}
    for camera in spec.cameras:
        overall[form.image_key(camera)] = form.image_statistics(
            histograms[camera].sum(axis=0), int(starts[-1])
        )
    _write_meta(folder, spec, rows, tasks, overall, int(starts[-1]))


def _join_rows(
    shards: Sequence[Path],
    spec: form.DatasetSpec,
    folder: Path,
    rows: list[JsonObject],
    task_indices: list[int],
) -> dict[str, np.ndarray]:
    """Write the data files, one row group an episode; all numeric columns [n, d]."""
    schema = form.frame_schema(spec)
    numeric: dict[str, list[np.ndarray]] = {
        f.name: [] for f in schema if not pa.types.is_struct(f.type)
    }
    writer: pq.ParquetWriter | None = None
    file_index = -1
    num_bytes = 0
    for index, (shard, row) in enumerate(zip(shards, rows, strict=True)):
        path = shard / "rows.parquet"
        remedy = f"remove {shard}: its episode is collected again"
        table = read_table(path, remedy=remedy)
        with translating_library_errors(path, remedy):
            table = table.select(schema.names).cast(schema)
        length = row["length"]
        replaced = {
            "episode_index": np.full(length, index),
            "index": np.arange(row["dataset_from_index"], row["dataset_to_index"]),
            "task_index": np.full(length, task_indices[index]),
        }
        for name, values in replaced.items():
            table = table.set_column(
                schema.get_field_index(name), schema.field(name), pa.array(values, pa.int64())
            )
        if writer is None or num_bytes > form.MAX_DATA_BYTES:
            if writer is not None:
                writer.close()
            file_index = file_index + 1
            num_bytes = 0
            path = folder / form.DATA_PATH.format(
                chunk_index=file_index // 1000, file_index=file_index % 1000
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = pq.ParquetWriter(path, schema, compression="snappy")
        writer.write_table(table)
        num_bytes += (shard / "rows.parquet").stat().st_size
        row["data/chunk_index"] = file_index // 1000
        row["data/file_index"] = file_index % 1000
        for name, parts in numeric.items():
            parts.append(column_to_numpy(table.column(name)))
    if writer is not None:
        writer.close()
    return {name: np.concatenate(parts) for name, parts in numeric.items()}


def column_to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """A scalar column as [n], a column of equally long lists as [n, d]."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # an empty or oversized column stays chunked
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    if (
        pa.types.is_list(array.type)
        or pa.types.is_fixed_size_list(array.type)
        or pa.types.is_large_list(array.type)
    ):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
    return array.to_numpy(zero_copy_only=False)


def _join_videos(
    parts: list[Path], key: str, fps: int, folder: Path, rows: list[JsonObject]
) -> None:
    """Append the packets to as few files as the size limit allows; store each episode's place in
    `rows`."""
    file_index = 0
    first = 0
    while first < len(parts):
        last = first
        size = 0
        while last < len(parts) and size <= form.MAX_VIDEO_BYTES:
            size += parts[last].stat().st_size
            last += 1
        place = {"chunk_index": file_index // 1000, "file_index": file_index % 1000}
        path = folder / form.VIDEO_PATH.format(video_key=key, **place)
        path.parent.mkdir(parents=True, exist_ok=True)
        counts = concatenate_videos(parts[first:last], path, fps)
        begin = 0
        for row, part, count in zip(rows[first:last], parts[first:last], counts, strict=True):
            if count != row["length"]:
                raise ValueError(
                    f"{part} holds {count} frames for {row['length']} rows; remove {part.parent} "
                    "and rerun"
                )
            row |= {f"videos/{key}/{name}": value for name, value in place.items()}
            row[f"videos/{key}/from_timestamp"] = begin / fps
            row[f"videos/{key}/to_timestamp"] = (begin + count) / fps
            begin += count
        file_index = file_index + 1
        first = last


def concatenate_videos(parts: Sequence[Path], path: Path, fps: int) -> list[int]:
    """Concatenate equally encoded videos without B-frames; the frames of each.

    Packets are copied, not encoded again.
    """
    counts = []
    with av.open(str(path), "w") as output:
        stream: av.VideoStream | None = None
        begin = 0
        for part in parts:
            with av.open(str(part)) as source:
                if stream is None:
                    stream = output.add_stream_from_template(source.streams.video[0], opaque=True)
                    stream.time_base = source.streams.video[0].time_base
                time_base = source.streams.video[0].time_base
                assert time_base is not None
                tick = round(1 / (fps * time_base))
                count = 0
                for packet in source.demux(video=0):
                    if packet.size == 0:  # the end-of-stream marker
                        continue
                    packet.pts = packet.dts = (begin + count) * tick
                    packet.duration = tick
                    packet.stream = stream
                    output.mux(packet)
                    count += 1
            counts.append(count)
            begin += count
    return counts


def _write_meta(
    folder: Path,
    spec: form.DatasetSpec,
    rows: list[JsonObject],
    tasks: list[str],
    statistics: form.Statistics,
    num_frames: int,
) -> None:
    episodes = folder / form.EPISODES_PATH
    episodes.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), episodes, compression="snappy")
    pq.write_table(form.build_tasks_table(tasks), folder / form.TASKS_PATH)
    (folder / form.STATS_PATH).write_text(form.statistics_to_json(statistics))
    write_json(folder / form.ACTION_SPEC_PATH, dict(spec.action_spec))
    write_json(folder / form.SOURCE_PATH, dict(spec.source))
    write_json(folder / form.INFO_PATH, form.build_info(spec, len(rows), num_frames, len(tasks)))
