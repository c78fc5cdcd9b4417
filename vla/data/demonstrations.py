"""Demonstrations from any LeRobotDataset v3, with random access to frames and the actions after
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from vla.data import lerobot_format as form
from vla.data.dataset_checks import (
    check_dataset_spec,
    describe_padding,
    read_trainable_rows,
    select_cameras,
)
from vla.data.frame_cache import open_frame_cache, stored_image_size
from vla.data.lerobot_reader import (
    Columns,
    dimension_names,
    read_action_spec,
    read_columns,
    read_episodes,
    read_info,
    read_statistics,
)
from vla.data.spec_checks import check_action_spec, check_limits
from vla.files.reading import JsonMapping

__all__ = [
    "Columns",
    "DemonstrationBatch",
    "Demonstrations",
    "check_action_spec",
    "open_demonstrations",
    "read_columns",
]


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
class Demonstrations:
    """Some or all episodes of a dataset; frames are numbered 0 to `num_frames` - 1 among those.

    Attributes:
        folder: of the dataset.
        cameras: camera names.
        fps: frames, and so control steps, per second.
        robot: name of the robot, if the dataset has it.
        proprio_names, action_names: one name per dimension.
        action_spec: meaning of an action's numbers, if the dataset has it.
        statistics: min, max, mean, std, q01 ... q99 of every feature ("action", ...).
        instructions: the tasks, by task index.
        columns, frames: every row of the dataset, and its images uint8 [M, h, w, 3] by camera.
        rows: the rows [num_frames] that belong to the chosen episodes.
        picture_sizes: stored height and width of every camera's images.
        notes: remarks for the user, a sentence each.
    """

    folder: Path
    cameras: tuple[str, ...]
    fps: float
    robot: str | None
    proprio_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_spec: JsonMapping | None
    statistics: form.Statistics
    instructions: Mapping[int, str]
    columns: Columns
    frames: Mapping[str, np.ndarray]
    rows: Int[np.ndarray, "N"]
    picture_sizes: Mapping[str, tuple[int, int]]
    notes: tuple[str, ...]

    @property
    def num_frames(self) -> int:
        return len(self.rows)

    @property
    def num_episodes(self) -> int:
        return len(self.episodes)

    @property
    def num_failures(self) -> int:
        """Number of the chosen episodes that the dataset marks as failed."""
        return len(np.unique(self.episode_index[~self.columns.success[self.rows]]))

    @property
    def episodes(self) -> Int[np.ndarray, "n"]:
        """The chosen episodes' indices, ascending."""
        return np.unique(self.episode_index)

    @property
    def episode_index(self) -> Int[np.ndarray, "N"]:
        """The episode of every frame."""
        return self.columns.episode_index[self.rows]

    def batch(
        self, indices: Sequence[int] | Int[np.ndarray, "B"], horizon: int
    ) -> DemonstrationBatch:
        """The frames `indices`, in any order, each with its next `horizon` actions.

        Past its episode's end a chunk repeats the last action, with the mask False. Raises
        ValueError for a horizon below 1.
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
            instruction=[self.instructions[task] for task in columns.task_index[rows].tolist()],
        )

    def choose(self, episodes: Sequence[int] | Int[np.ndarray, "n"]) -> Demonstrations:
        """The given episodes only.

        Raises ValueError for an episode outside the current choice.
        """
        unknown = set(np.asarray(episodes).tolist()) - set(self.episodes.tolist())
        if unknown:
            raise ValueError(
                f"{self.folder} has no episodes {sorted(unknown)} among the chosen "
                f"{self.num_episodes}"
            )
        return replace(self, rows=self.rows[np.isin(self.episode_index, episodes)])

    def split(self, fraction: float, seed: int) -> tuple[Demonstrations, Demonstrations]:
        """Two disjoint sets of whole episodes, the second with `fraction` of them (at least one).

        Raises ValueError for a fraction outside (0, 1) or fewer than two episodes.
        """
        if not 0.0 < fraction < 1.0 or self.num_episodes < 2:
            raise ValueError(
                f"data.holdout_fraction ({fraction}) must lie between 0 and 1, and the dataset's "
                f"{self.num_episodes} "
                "episodes must be at least 2: record more, or keep failures too "
                "(data.failures=keep)"
            )
        shuffled = np.random.default_rng(seed).permutation(self.episodes)
        count = min(max(1, round(fraction * len(shuffled))), len(shuffled) - 1)
        return self.choose(np.sort(shuffled[count:])), self.choose(np.sort(shuffled[:count]))


def open_demonstrations(
    folder: str | Path,
    *,
    cameras: Sequence[str] | None = None,
    drawable: Sequence[str] | None = None,
    action_spec: JsonMapping | None = None,
    proprio_names: Sequence[str] | None = None,
    image_size: int | None = None,
    cache: str | Path | None = None,
    failures: Literal["keep", "drop"] = "keep",
    max_outside_limits: float = 0.1,
) -> Demonstrations:
    """Open a LeRobotDataset v3 folder; the first time, its images are decoded into a cache.

    Args:
        cameras: the cameras to load, in this order; None for all.
        drawable: cameras that the environment can render, for messages; None for any name.
        action_spec: the caller's action spec; the dataset must agree in every field it has.
        proprio_names: the caller's state names; the dataset's must have the same number, and
            agree unless they are uninformative.
        image_size: height and width to resize to (`vla.data.image_fitting`); None keeps them.
        cache: folder of decoded frames; None for a hidden folder inside the dataset.
        failures: "drop" leaves out the episodes that the dataset marks as failed.
        max_outside_limits: largest fraction of frames with an action outside the limits of
            `action_spec`.

    Raises:
        ValueError: no dataset in the folder; another version, cameras, state or actions; NaN or
            infinite numbers.
    """
    folder = Path(folder)
    owner = f"the dataset {folder}"
    info = read_info(folder)
    keys = select_cameras(folder, info, cameras, drawable)
    spec = read_action_spec(folder)
    expected = action_spec or {}
    open_fields = check_dataset_spec(info, spec, expected, proprio_names, owner)
    trainable = read_trainable_rows(folder, info, failures)
    columns = trainable.columns
    rows = trainable.rows
    sizes = {camera: stored_image_size(info["features"][key]) for camera, key in keys.items()}
    learned = columns.actions[rows[~columns.perturbed[rows]]]
    limits = check_limits(learned, expected, max_outside_limits, owner)
    notes = [*trainable.notes, describe_padding(sizes), open_fields, limits]
    episodes = read_episodes(folder)
    decoded = open_frame_cache(
        folder, info, episodes, list(keys.values()), image_size, Path(cache) if cache else None
    )
    return Demonstrations(
        folder=folder,
        cameras=tuple(keys),
        fps=info["fps"],
        robot=info.get("robot_type"),
        proprio_names=dimension_names(info, form.STATE_KEY),
        action_names=dimension_names(info, form.ACTION_KEY),
        action_spec=spec,
        statistics=read_statistics(folder, columns),
        instructions=trainable.instructions,
        columns=columns,
        frames={camera: decoded[key] for camera, key in keys.items()},
        rows=rows,
        picture_sizes=sizes,
        notes=tuple(note for note in notes if note),
    )


def undisturbed_chunks(
    columns: Columns, horizon: int, rows: np.ndarray | None = None
) -> np.ndarray:
    """Chunks of actions [N, H, A] that begin at `rows` (None: all frames), without perturbed
    frames.

    Past its episode's end a chunk repeats the last action.
    """
    rows = np.arange(len(columns.actions)) if rows is None else rows
    rows = rows[~columns.perturbed[rows]]
    steps = np.minimum(rows[:, None] + np.arange(horizon), columns.episode_end[rows][:, None] - 1)
    return columns.actions[steps]
