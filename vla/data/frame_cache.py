"""Decodes a dataset's images once, into one uint8 array a camera that is read through memory mapping ever after.

A random frame then costs a copy of its bytes instead of a seek and a decode: about 100 times less.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from vla.data import lerobot_format as form
from vla.data.pictures import RESIZE, fitted


def cached_frames(
    folder: Path,
    info: Mapping[str, Any],
    episodes: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    image_size: int | None,
    cache: Path | None,
) -> dict[str, np.ndarray]:
    """Every frame of the image features `keys`: uint8 [N, h, w, 3] each, decoded now unless an earlier call did.

    Args:
        folder: of the dataset.
        info: its `meta/info.json`.
        episodes: its episode rows, in order.
        keys: image or video features.
        image_size: height and width to resize to; None keeps the stored size.
        cache: where the decoded arrays are kept; None for `.frames` inside the dataset's folder.

    Raises:
        OSError: there is no room for the decoded frames.
        ValueError: a video's frames and the rows do not match.
    """
    size = "stored" if image_size is None else f"{image_size}-{RESIZE}"
    home = _cache_home(folder, cache) / f"{size}-{_fingerprint(folder)}"
    paths = {key: home / f"{key}.npy" for key in keys}
    missing = [key for key in keys if not paths[key].exists()]
    sizes = {
        key: picture_size(info["features"][key]) if image_size is None else (image_size, image_size) for key in missing
    }
    shapes = {key: (int(info["total_frames"]), *size, 3) for key, size in sizes.items()}
    if missing:
        home.mkdir(parents=True, exist_ok=True)
        _check_room(home, sum(int(np.prod(shape)) for shape in shapes.values()))
        with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1)) as pool:  # decoders release the GIL
            list(pool.map(lambda key: _decode(folder, info, episodes, key, shapes[key], paths[key]), missing))
    return {key: np.asarray(np.load(path, mmap_mode="r")) for key, path in paths.items()}


def _cache_home(folder: Path, cache: Path | None) -> Path:
    if cache is not None:
        return cache
    if os.access(folder, os.W_OK):
        return folder / ".frames"
    return Path.home() / ".cache" / "vla" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _fingerprint(folder: Path) -> str:
    """Changes when any data or video file does."""
    files = sorted([*folder.glob("data/*/*"), *folder.glob("videos/*/*/*"), folder / form.INFO_PATH])
    facts = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def picture_size(feature: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of an image feature, which may be described with its channels first."""
    shape, names = feature["shape"], feature.get("names") or []
    height, width = shape[-2:] if "channels" in names[:1] or shape[0] in (1, 3) else shape[:2]
    return int(height), int(width)


def _check_room(home: Path, needed: int) -> None:
    free = shutil.disk_usage(home).free
    if free < needed:
        raise OSError(
            f"disk full: the decoded frames need {needed:,} bytes in {home} and {free:,} are free. "
            "Make room, or set sim.image_size to something smaller"
        )


def _decode(
    folder: Path,
    info: Mapping[str, Any],
    episodes: Sequence[Mapping[str, Any]],
    key: str,
    shape: tuple[int, ...],
    path: Path,
) -> None:
    draft = path.with_suffix(".draft")
    frames = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=shape)
    if info["features"][key]["dtype"] == "video":
        filled = _fill_from_videos(folder, info, episodes, key, frames)
    else:
        filled = 0
        for filled, image in enumerate(_stored_images(folder, key), 1):
            if filled <= len(frames):
                frames[filled - 1] = _resized(image, shape)
    if filled != shape[0]:
        raise ValueError(f"{folder}: {key} has {filled} images for {shape[0]} rows; the dataset is damaged")
    frames.flush()
    del frames
    os.rename(draft, path)


def _fill_from_videos(
    folder: Path, info: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]], key: str, frames: np.ndarray
) -> int:
    """Decode every file once, front to back; an episode's frames lie from its `from_timestamp` on."""
    files: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for episode in episodes:
        place = int(episode[f"videos/{key}/chunk_index"]), int(episode[f"videos/{key}/file_index"])
        files.setdefault(place, []).append(episode)
    filled = 0
    for (chunk, file), inside in files.items():
        path = folder / info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
        # Row of the dataset that each frame of the file belongs to.
        rows: dict[int, int] = {}
        for episode in inside:
            begin = round(float(episode[f"videos/{key}/from_timestamp"]) * info["fps"])
            first, length = int(episode["dataset_from_index"]), int(episode["length"])
            rows |= {begin + step: first + step for step in range(length)}
        count = 0
        for count, image in enumerate(_video_frames(path, frames.shape), 1):
            row = rows.get(count - 1)
            if row is not None:
                frames[row] = image
                filled += 1
        if count != max(rows) + 1:
            raise ValueError(
                f"{path} holds {count} frames, but the episodes in it have {max(rows) + 1} rows (a recorder that drops "
                f"frames shifts every later one): record it again or convert it without streaming"
            )
    return filled


def _video_frames(path: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE" if stream.height * stream.width < 2**16 else "AUTO"
            for frame in container.decode(stream):
                yield _resized(frame.to_ndarray(format="rgb24"), shape)
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): copy or download the dataset again") from error


def _stored_images(folder: Path, key: str) -> Iterator[np.ndarray]:
    for path in sorted(folder.glob("data/*/*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=64, columns=[key]):
            for cell in batch.column(0).to_pylist():
                if cell is None or cell.get("bytes") is None:
                    raise ValueError(f"{path}: {key} has an image that is not stored in the file")
                with Image.open(io.BytesIO(cell["bytes"])) as image:
                    yield np.asarray(image.convert("RGB"))


def _resized(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A picture in the height and width of an array [N, h, w, 3] of them."""
    if image.shape[:2] == shape[1:3]:
        return image
    if shape[1] != shape[2]:
        raise ValueError(f"a picture has {image.shape[:2]} pixels, {form.INFO_PATH} says {shape[1:3]}: it is damaged")
    return fitted(image, shape[1])
