"""Decoded images of a dataset, cached as one memory-mapped uint8 array for each camera.

A random frame costs a copy of its bytes instead of a seek and a decode: about 100 times less.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

import av
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from vla.data import lerobot_format as form
from vla.data.image_fitting import RESIZE, fit_to_square
from vla.files.arrays import translating_library_errors
from vla.files.file_lock import hold_file_lock
from vla.files.manifest import file_sha256
from vla.files.reading import DamagedFile, JsonMapping, read_json, validating_file
from vla.files.writing import (
    DiskFull,
    atomic_file,
    is_disk_full,
    remove,
    remove_unfinished,
    write_json,
)


def open_frame_cache(
    folder: Path,
    info: JsonMapping,
    episodes: Sequence[JsonMapping],
    keys: Sequence[str],
    image_size: int | None,
    cache: Path | None,
) -> dict[str, np.ndarray]:
    """Every frame of the image features `keys`: uint8 [N, h, w, 3] each, decoded at the first call.

    Args:
        folder: of the dataset.
        info: its `meta/info.json`.
        episodes: its episode rows, in order.
        keys: image or video features.
        image_size: height and width to resize to; None keeps the stored size.
        cache: folder of the decoded arrays; None for `.frames` inside the dataset's folder.

    Raises:
        OSError: the disk has no room for the decoded frames.
        ValueError: the frames of a video and the rows do not match.
    """
    size = "stored" if image_size is None else f"{image_size}-{RESIZE}"
    home = _cache_home(folder, cache) / f"{size}-{_fingerprint(folder)}"
    paths = {key: home / f"{key}.npy" for key in keys}
    try:
        home.mkdir(parents=True, exist_ok=True)
        with hold_file_lock(home) as alone:  # a second process waits for what the first decodes
            if alone:
                remove_unfinished(home)
            _fill(folder, info, episodes, image_size, paths)
    except OSError as error:
        if isinstance(error, DiskFull) or not is_disk_full(error):
            raise
        raise DiskFull(
            f"the disk is full, {home} was not written ({error.strerror}): {DISK_FULL_REMEDY}"
        ) from error
    return {key: np.asarray(np.load(path, mmap_mode="r")) for key, path in paths.items()}


def _fill(
    folder: Path,
    info: JsonMapping,
    episodes: Sequence[JsonMapping],
    image_size: int | None,
    paths: Mapping[str, Path],
) -> None:
    """Decode the arrays that are missing or damaged."""
    missing = [key for key, path in paths.items() if not _is_whole(path)]
    sizes = {
        key: stored_image_size(info["features"][key])
        if image_size is None
        else (image_size, image_size)
        for key in missing
    }
    shapes = {key: (int(info["total_frames"]), *size, 3) for key, size in sizes.items()}
    if missing:
        _check_room(paths[missing[0]].parent, sum(int(np.prod(shape)) for shape in shapes.values()))
        with ThreadPoolExecutor(
            min(len(missing), os.cpu_count() or 1)
        ) as pool:  # decoders release the GIL
            list(
                pool.map(
                    lambda key: _decode(folder, info, episodes, key, shapes[key], paths[key]),
                    missing,
                )
            )


class CompleteArray(TypedDict):
    """The JSON file beside an array: the checksum of the array's file."""

    sha256: str


def _is_whole(path: Path) -> bool:
    """True where an array exists and matches its checksum; a damaged one is removed."""
    if not path.exists():
        return False
    try:
        written = read_json(path.with_suffix(".json"), CompleteArray)["sha256"]
        fault = (
            None
            if path.is_file() and file_sha256(path) == written
            else "it does not have the checksum that was written"
        )
    except DamagedFile as error:
        fault = f"its checksum cannot be read ({error.fault})"
    if fault is not None:
        print(f"{path} is decoded again: {fault}", file=sys.stderr)
        remove(path)
        remove(path.with_suffix(".json"))
    return fault is None


def _cache_home(folder: Path, cache: Path | None) -> Path:
    if cache is not None:
        return cache
    if os.access(folder, os.W_OK):
        return folder / ".frames"
    return (
        Path.home()
        / ".cache"
        / "vla"
        / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    )


def _fingerprint(folder: Path) -> str:
    """A hash of the contents of all data and video files; modification times and sizes do not
    suffice."""
    patterns = ("data/*/*", "videos/*/*/*", "meta/episodes/*/*", form.INFO_PATH)
    files = sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())
    facts = [(file.relative_to(folder).as_posix(), file_sha256(file)) for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def stored_image_size(feature: JsonMapping) -> tuple[int, int]:
    """Height and width of an image feature, which may be described with its channels first."""
    shape = feature["shape"]
    names = feature.get("names") or []
    height, width = shape[-2:] if "channels" in names[:1] or shape[0] in (1, 3) else shape[:2]
    return int(height), int(width)


def _check_room(home: Path, needed: int) -> None:
    free = shutil.disk_usage(home).free
    if free < needed:
        raise DiskFull(
            f"disk full: the decoded frames need {needed:,} bytes in {home} and {free:,} are "
            f"free: {DISK_FULL_REMEDY}"
        )


DISK_FULL_REMEDY = (
    "make room, set sim.image_size to something smaller, or move the dataset (data.path) to a "
    "disk with room"
)


def _decode(
    folder: Path,
    info: JsonMapping,
    episodes: Sequence[JsonMapping],
    key: str,
    shape: tuple[int, ...],
    path: Path,
) -> None:
    with atomic_file(path) as draft:
        _write_frames(folder, info, episodes, key, shape, draft)
        written = file_sha256(draft)
    write_json(path.with_suffix(".json"), {"sha256": written})


def _write_frames(
    folder: Path,
    info: JsonMapping,
    episodes: Sequence[JsonMapping],
    key: str,
    shape: tuple[int, ...],
    draft: Path,
) -> None:
    frames = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=shape)
    _reserve(draft)
    if info["features"][key]["dtype"] == "video":
        filled = _fill_from_videos(folder, info, episodes, key, frames)
    else:
        filled = 0
        for filled, image in enumerate(_stored_images(folder, key), 1):
            if filled <= len(frames):
                frames[filled - 1] = _resized(image, shape)
    if filled != shape[0]:
        raise ValueError(
            f"{folder}: {key} has {filled} images for {shape[0]} rows; the dataset is damaged"
        )
    frames.flush()


def _reserve(draft: Path) -> None:
    """Allocate a mapped file before it is written: on a full disk a write to a mapping kills the
    process."""
    if hasattr(os, "posix_fallocate"):
        with draft.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, draft.stat().st_size)


def _fill_from_videos(
    folder: Path,
    info: JsonMapping,
    episodes: Sequence[JsonMapping],
    key: str,
    frames: np.ndarray,
) -> int:
    """Decode every file once, front to back; an episode's frames begin at its `from_timestamp`. The
    number of frames."""
    filled = 0
    for path, rows in _rows_of_videos(folder, info, episodes, key).items():
        count = 0
        for count, image in enumerate(_video_frames(path, frames.shape), 1):
            row = rows.get(count - 1)
            if row is not None:
                frames[row] = image
                filled += 1
        if count != max(rows) + 1:
            raise ValueError(
                f"{path} holds {count} frames, but the episodes in it have {max(rows) + 1} rows "
                "(a recorder that drops "
                f"frames shifts every later one): record it again or convert it without streaming"
            )
    return filled


def _rows_of_videos(
    folder: Path, info: JsonMapping, episodes: Sequence[JsonMapping], key: str
) -> dict[Path, dict[int, int]]:
    """The dataset row of each frame of every video file.

    Raises DamagedFile where the episodes lack it, or a row has no frame of its own.
    """
    files: dict[Path, dict[int, int]] = {}
    with validating_file(folder / form.INFO_PATH, form.COPY_AGAIN):
        pattern = info["video_path"]
        pattern.format(video_key=key, chunk_index=0, file_index=0)
    with validating_file(folder / "meta" / "episodes", form.COPY_AGAIN):
        for episode in episodes:
            chunk = int(episode[f"videos/{key}/chunk_index"])
            file = int(episode[f"videos/{key}/file_index"])
            path = folder / pattern.format(video_key=key, chunk_index=chunk, file_index=file)
            begin = round(float(episode[f"videos/{key}/from_timestamp"]) * info["fps"])
            first = episode["dataset_from_index"]
            files.setdefault(path, {}).update(
                {begin + i: first + i for i in range(episode["length"])}
            )
        total = info["total_frames"]
        if sorted(row for rows in files.values() for row in rows.values()) != list(range(total)):
            raise ValueError(
                f"the frames that its episodes name for {key} are not those of rows 0 to "
                f"{total - 1}"
            )
    return files


def _video_frames(path: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE" if stream.height * stream.width < 2**16 else "AUTO"
            for frame in container.decode(stream):
                yield _resized(frame.to_ndarray(format="rgb24"), shape)
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): {form.COPY_AGAIN}") from error


def _stored_images(folder: Path, key: str) -> Iterator[np.ndarray]:
    for path in sorted(folder.glob("data/*/*.parquet")):
        with translating_library_errors(path, form.COPY_AGAIN):
            for batch in pq.ParquetFile(path).iter_batches(batch_size=64, columns=[key]):
                for cell in batch.column(0).to_pylist():
                    if cell is None or cell.get("bytes") is None:
                        raise ValueError(
                            f"{path}: {key} has an image that is not stored in the file"
                        )
                    with Image.open(io.BytesIO(cell["bytes"])) as image:
                        yield np.asarray(image.convert("RGB"))


def _resized(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An image in the height and width of an array [N, h, w, 3]."""
    if image.shape[:2] == shape[1:3]:
        return image
    if shape[1] != shape[2]:
        raise ValueError(
            f"a picture has {image.shape[:2]} pixels, {form.INFO_PATH} says {shape[1:3]}: it is "
            "damaged"
        )
    return fit_to_square(image, shape[1])
