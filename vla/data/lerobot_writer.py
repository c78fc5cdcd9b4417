"""A writer of LeRobotDataset v3 that keeps finished episodes through interruptions and full disks.

Every finished episode is a shard in `.<name>.partial/episodes/` beside the dataset's folder: its
rows as parquet and its frames as one lossless video a camera (or PNG in the rows). `finish` joins
the shards without encoding again and renames the result into place. The folder therefore holds a
whole dataset or does not exist. Writing costs about a tenth of LeRobot's own writer and drops no
frame.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from vla.data import lerobot_format as form
from vla.data.lerobot_join import join_shards, read_shard
from vla.files.reading import read_json
from vla.files.writing import flush_folder, flush_tree, is_disk_full, write_json

# RGB without loss: simulator pictures are flat, so it is as fast as lossy coding and 2 to 3 times
# as large, and a policy trains on exactly the pixels that it will act on. Every second frame is a
# key frame, for random access.
CODEC = "libx264rgb"
CODEC_OPTIONS = {"preset": "ultrafast", "crf": "0", "g": "2", "bf": "0"}


@dataclass(frozen=True)
class Episode:
    """One trajectory of T control steps; row t holds the observation before action t and the
    action.

    `perturbed` marks actions that no policy should imitate.
    """

    images: Mapping[str, UInt8[np.ndarray, "T h w 3"]]
    proprio: Float32[np.ndarray, "T s"]
    actions: Float32[np.ndarray, "T A"]
    perturbed: Bool[np.ndarray, "T"]
    instruction: str
    seed: int
    success: bool

    def __len__(self) -> int:
        return len(self.actions)


class LeRobotWriter:
    """A writer that opens or resumes the dataset in `folder`.

    Raises:
        ValueError: `folder` exists already, or a partial dataset with another spec is in the way.
    """

    def __init__(self, folder: str | Path, spec: form.DatasetSpec) -> None:
        self.folder = Path(folder)
        self.spec = spec
        self.partial = partial_folder(self.folder)
        if self.folder.exists():
            raise ValueError(
                f"{self.folder} exists already: remove it or choose another output folder"
            )
        self._episodes = self.partial / "episodes"
        with explaining_disk_full(self.partial, 2**20):
            self._episodes.mkdir(parents=True, exist_ok=True)
            self._check_spec()
        for stale in self._episodes.glob(".*"):
            shutil.rmtree(stale)
        self._lengths = {int(shard.name): _length(shard) for shard in self._episodes.iterdir()}
        self._failures_path = self.partial / "failures.txt"
        stored_seeds = (
            self._failures_path.read_text().split() if self._failures_path.exists() else []
        )
        self._failed = {int(seed) for seed in stored_seeds}

    @property
    def finished_seeds(self) -> frozenset[int]:
        """Seeds of the episodes that are safe on disk."""
        return frozenset(self._lengths)

    @property
    def failed_seeds(self) -> frozenset[int]:
        """Seeds that failed."""
        return frozenset(self._failed)

    @property
    def num_frames(self) -> int:
        return sum(self._lengths.values())

    def add(self, episode: Episode) -> None:
        """Store an episode; after the call it survives a crash.

        Raises:
            ValueError: the episode does not fit the spec.
            OSError: the disk is full; stored episodes are intact.
        """
        _check_episode(episode, self.spec)
        if episode.seed in self._lengths:
            raise ValueError(f"an episode with seed {episode.seed} is already in {self.partial}")
        shard = self._episodes / str(episode.seed)
        draft = self._episodes / f".{episode.seed}"
        needed = sum(image.nbytes for image in episode.images.values()) + 2**16
        with explaining_disk_full(self.partial, needed):
            shutil.rmtree(draft, ignore_errors=True)  # of an attempt that failed
            draft.mkdir()
            if self.spec.storage == "video":
                for camera in self.spec.cameras:
                    encode_video(draft / f"{camera}.mp4", episode.images[camera], self.spec.fps)
            pq.write_table(_rows(episode, self.spec), draft / "rows.parquet")
            histograms = {
                camera: form.channel_histogram(episode.images[camera]).tolist()
                for camera in self.spec.cameras
            }
            metadata = {
                "instruction": episode.instruction,
                "length": len(episode),
                "histograms": histograms,
            }
            write_json(draft / "episode.json", metadata)
            flush_tree(draft)
            os.rename(draft, shard)
            flush_folder(self._episodes)
        self._lengths[episode.seed] = len(episode)

    def record_failure(self, seed: int) -> None:
        """Record a failed seed, so that a resumed collection does not try it again."""
        with explaining_disk_full(self.partial, 2**12), self._failures_path.open("a") as file:
            file.write(f"{seed}\n")
        self._failed.add(seed)

    def finish(self) -> Path:
        """Join all episodes, in the order of their seeds, and remove the partial folder.

        Raises:
            ValueError: there is no episode.
            OSError: the disk is full; the episodes are kept, and calling again continues.
        """
        if not self._lengths:
            raise ValueError(
                f"{self.folder}: no episode was written, so there is no dataset to finish"
            )
        shards = [self._episodes / str(seed) for seed in sorted(self._lengths)]
        needed = sum(file.stat().st_size for shard in shards for file in shard.iterdir()) + 2**20
        if shutil.disk_usage(self.partial).free < needed:
            raise disk_full_error(self.partial, needed)
        dataset = self.partial / "joined"
        shutil.rmtree(dataset, ignore_errors=True)
        with explaining_disk_full(self.partial, needed):
            join_shards(shards, self.spec, dataset)
            flush_tree(dataset)
            os.rename(dataset, self.folder)
            flush_folder(self.folder.absolute().parent)
        shutil.rmtree(self.partial)
        return self.folder

    def _check_spec(self) -> None:
        """Write the spec of a new partial dataset, or compare it with the existing one."""
        path = self.partial / "spec.json"
        spec = self.spec.to_dict()
        if not path.exists():
            write_json(path, spec)
            return
        stored = read_json(path, remedy=f"remove {self.partial} and collect anew")
        for field, value in spec.items():
            if stored.get(field) != value:
                raise ValueError(
                    f"{self.partial} holds an unfinished dataset with {field} = "
                    f"{stored.get(field)!r}, not {value!r}: "
                    f"run with the same settings to continue it, or remove that folder"
                )


def partial_folder(folder: Path) -> Path:
    """The folder of the unfinished dataset of `folder`."""
    return folder.absolute().parent / f".{folder.name}.partial"


def encode_video(path: Path, images: UInt8[np.ndarray, "T h w 3"], fps: int) -> None:
    """Write frames as one lossless video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODEC, rate=fps, options=CODEC_OPTIONS)
        assert isinstance(stream, av.VideoStream)
        stream.height = images.shape[1]
        stream.width = images.shape[2]
        stream.pix_fmt = "rgb24"
        stream.codec_context.thread_count = 1
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def disk_full_error(path: Path, needed: int) -> OSError:
    """The error of a full disk, with path, bytes needed and bytes free."""
    free = shutil.disk_usage(path if path.exists() else path.parent).free
    message = (
        f"disk full: writing to {path} needs about {needed:,} bytes and {free:,} are free. "
        "All finished episodes are kept there: make room and run the same command again to "
        "continue"
    )
    return OSError(errno.ENOSPC, message)


@contextmanager
def explaining_disk_full(path: Path, needed: int) -> Iterator[None]:
    """Turn "no space left on device" from any library into an error with a remedy."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full_error(path, needed) from error
        raise


def _length(shard: Path) -> int:
    return read_shard(shard)["length"]


def _rows(episode: Episode, spec: form.DatasetSpec) -> pa.Table:
    """The episode's rows; `join_shards` fills the indices that depend on other episodes."""
    length = len(episode)
    values: dict[str, object] = {
        form.STATE_KEY: episode.proprio,
        form.ACTION_KEY: episode.actions,
        "perturbed": episode.perturbed,
        "seed": np.full(length, episode.seed, np.int64),
        "success": np.full(length, episode.success),
        "timestamp": (np.arange(length) / spec.fps).astype(np.float32),
        "frame_index": np.arange(length),
    }
    schema = form.frame_schema(spec)
    columns = []
    for field in schema:
        if pa.types.is_struct(field.type):
            images = episode.images[field.name.removeprefix(form.IMAGE_PREFIX)]
            column = pa.array(
                [{"bytes": _png(image), "path": None} for image in images], field.type
            )
        elif pa.types.is_fixed_size_list(field.type):
            flat = pa.array(np.ascontiguousarray(values[field.name], np.float32).reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, type=field.type)
        else:
            column = pa.array(values.get(field.name, np.zeros(length, np.int64)), field.type)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _check_episode(episode: Episode, spec: form.DatasetSpec) -> None:
    length = len(episode)
    if length == 0:
        raise ValueError(f"the episode with seed {episode.seed} has no control step")
    if set(episode.images) != set(spec.cameras):
        raise ValueError(
            f"the episode has cameras {sorted(episode.images)}, the dataset {sorted(spec.cameras)}"
        )
    expected: dict[str, tuple[int, ...]] = {
        f"images[{camera}]": (length, *spec.image_size, 3) for camera in spec.cameras
    }
    expected |= {
        "proprio": (length, len(spec.proprio_names)),
        "actions": (length, len(spec.action_names)),
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"images[{camera}]": image.shape for camera, image in episode.images.items()
    }
    shapes |= {
        "proprio": episode.proprio.shape,
        "actions": episode.actions.shape,
        "perturbed": episode.perturbed.shape,
    }
    for name, shape in (expected | {"perturbed": (length,)}).items():
        if shapes[name] != shape:
            raise ValueError(
                f"episode seed {episode.seed}: {name} has shape {shapes[name]}, the dataset "
                "expects "
                f"{shape}"
            )
