"""Recorded episodes: seeds, actions and decisions in a few kilobytes, without images.

The viewer renders an episode again from its start and its actions.

recordings/
  rl-000010.safetensors    the episodes of one iteration; its metadata holds the simulator's
      settings
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from vla.files.arrays import read_safetensors_with_metadata
from vla.files.reading import MAPPING, DamagedFile, JsonMapping, validate_values, validating_file
from vla.files.writing import atomic_file

FORMAT = "1"


@dataclass(frozen=True)
class EpisodeRecording:
    """`N` episodes of `D` decisions, in the order of time within an episode.

    `episode` [D] numbers 0..N-1. `values`, `advantages` and `logprobs_after` (under the weights
    after the update) are None where there are none. `chain` holds the denoising states of flow and
    diffusion policies, as actions. `measures` holds the environment's own numbers, one an episode.
    """

    stage: str
    iteration: int
    sim: JsonMapping
    decoding: str
    seed: Int[np.ndarray, "N"]
    group: Int[np.ndarray, "N"]
    success: Bool[np.ndarray, "N"]
    measures: Mapping[str, np.ndarray]
    episode: Int[np.ndarray, "D"]
    action: Float[np.ndarray, "D H A"]
    reward: Float[np.ndarray, "D"]
    logprobs: Float[np.ndarray, "D L"]
    mask: Bool[np.ndarray, "D L"]
    values: Float[np.ndarray, "D"] | Float[np.ndarray, "D L"] | None = None
    advantages: Float[np.ndarray, "D _"] | None = None
    logprobs_after: Float[np.ndarray, "D L"] | None = None
    chain: Float[np.ndarray, "D K H A"] | None = None

    @property
    def name(self) -> str:
        """The stem of the file."""
        return f"{self.stage}-{self.iteration:06d}"


ARRAYS = ("seed", "group", "success", "episode", "action", "reward", "logprobs", "mask")
OPTIONAL = ("values", "advantages", "logprobs_after", "chain")


def save_recording(folder: Path, recording: EpisodeRecording) -> Path:
    """Write `folder/NAME.safetensors` atomically; its path."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: getattr(recording, name) for name in ARRAYS}
    arrays |= {
        name: getattr(recording, name) for name in OPTIONAL if getattr(recording, name) is not None
    }
    arrays |= {f"measure/{name}": values for name, values in recording.measures.items()}
    metadata = {
        "format": FORMAT,
        "sha256": recording_digest(arrays),
        "stage": recording.stage,
        "iteration": str(recording.iteration),
        "decoding": recording.decoding,
        "sim": json.dumps(dict(recording.sim)),
        "measures": json.dumps(list(recording.measures)),
    }
    path = folder / f"{recording.name}.safetensors"
    with atomic_file(path) as unfinished:
        save_file(
            {name: np.ascontiguousarray(values) for name, values in arrays.items()},
            unfinished,
            metadata,
        )
    return path


def load_recording(path: Path) -> EpisodeRecording:
    """Read a recording.

    Raises DamagedFile, a ValueError, for a damaged file or another version's format.
    """
    tensors, metadata = read_safetensors_with_metadata(path, DELETE_REMEDY)
    if metadata.get("format") != FORMAT:
        raise DamagedFile(
            path,
            f"it is a recording of format {metadata.get('format')}, this version reads {FORMAT}",
            DELETE_REMEDY,
        )
    if metadata.get("sha256", recording_digest(tensors)) != recording_digest(tensors):
        raise DamagedFile(
            path, "its arrays do not have the checksum that was written", DELETE_REMEDY
        )
    with validating_file(path, DELETE_REMEDY):
        # In the order of the task, which the file itself does not keep.
        names = [name.removeprefix("measure/") for name in tensors if name.startswith("measure/")]
        measures = {
            name: tensors[f"measure/{name}"]
            for name in json.loads(metadata.get("measures", "null")) or names
        }
        arrays = {name: tensors[name] for name in ARRAYS} | {
            name: tensors.get(name) for name in OPTIONAL
        }
        recording = EpisodeRecording(
            metadata["stage"],
            int(metadata["iteration"]),
            validate_values(path, json.loads(metadata["sim"]), MAPPING, DELETE_REMEDY),
            metadata["decoding"],
            measures=measures,
            **arrays,
        )
        check_sizes(recording)
    return recording


def check_sizes(recording: EpisodeRecording) -> None:
    """Check that the arrays belong together; ValueError where they do not."""
    episodes = len(recording.seed)
    decisions = len(recording.episode)
    sized = dict.fromkeys(("seed", "group", "success"), episodes)
    for name in (*ARRAYS, *OPTIONAL):
        values = getattr(recording, name)
        expected = sized.get(name, decisions)
        if values is not None and len(values) != expected:
            raise ValueError(f"its array {name} has {len(values)} rows, {expected} are expected")
    if decisions and not 0 <= recording.episode.min() <= recording.episode.max() < episodes:
        raise ValueError(
            f"its decisions belong to other episodes than the {episodes} that are there"
        )


def recording_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """The sha256 of all arrays, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


DELETE_REMEDY = "delete it, its episodes are lost"


def list_recordings(run: Path) -> list[Path]:
    """The recordings of a run and of its evaluations: those of training first, oldest first."""
    return [
        *sorted(run.glob("recordings/*.safetensors")),
        *sorted(run.glob("evaluations/*/recordings/*.safetensors")),
    ]
