"""Checks of a dataset before training: cameras, episodes, meaning of the numbers, finite values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from vla.data import lerobot_format as form
from vla.data.image_fitting import RESIZE
from vla.data.lerobot_reader import Columns, dimension_names, find_cameras, read_columns, read_tasks
from vla.data.spec_checks import (
    WITHOUT_SIMULATOR,
    check_action_spec,
    check_state,
    describe_missing_spec,
)
from vla.files.reading import JsonMapping


@dataclass(frozen=True)
class TrainableRows:
    """The numbers of a dataset, its rows for training, its instructions by task index, and notes
    for the user."""

    columns: Columns
    rows: Int[np.ndarray, "N"]
    instructions: Mapping[int, str]
    notes: tuple[str, ...]


def read_trainable_rows(
    folder: Path, info: JsonMapping, failures: Literal["keep", "drop"]
) -> TrainableRows:
    """Read and check everything except images.

    Raises:
        ValueError: NaN or infinity, tasks without instruction, or no episode besides failures.
    """
    columns = read_columns(folder, info)
    rows, failure_note = select_rows(columns, failures, f"the dataset {folder}")
    check_finite_columns(info, columns, rows, f"the dataset {folder}")
    instructions = read_tasks(folder, columns.task_index)
    notes = (failure_note, find_empty_tasks(columns, rows, instructions))
    return TrainableRows(columns, rows, instructions, tuple(note for note in notes if note))


def select_cameras(
    folder: Path,
    info: JsonMapping,
    requested: Sequence[str] | None,
    drawable: Sequence[str] | None,
) -> dict[str, str]:
    """Map camera names to feature keys, in the order of `requested`.

    `drawable` names the cameras of the simulator; None is any. Raises ValueError with a remedy
    where a camera is missing.
    """
    keys = find_cameras(info)
    missing = [camera for camera in requested or () if camera not in keys]
    if missing:
        shared = [camera for camera in keys if drawable is None or camera in drawable]
        if shared:
            remedy = (
                f"set sim.cameras=[{','.join(shared)}], and model.checkpoint=null where that has "
                "other cameras"
            )
        elif keys:
            remedy = (
                f"the simulator draws {', '.join(drawable or ())} and no others; "
                f"{WITHOUT_SIMULATOR}"
            )
        else:
            remedy = "record it again with cameras: every policy looks at pictures"
        raise ValueError(
            f"cameras: {', '.join(missing)} wanted, but the dataset {folder} has "
            f"{', '.join(keys) or 'none'}; {remedy}"
        )
    return {camera: keys[camera] for camera in (keys if requested is None else requested)}


def check_dataset_spec(
    info: JsonMapping,
    stated: JsonMapping | None,
    action_spec: JsonMapping,
    proprio_names: Sequence[str] | None,
    owner: str,
) -> str | None:
    """Compare a dataset's action and state spec with the expected one; a note about fields that it
    leaves open.

    Raises ValueError with the field that differs.
    """
    fields = stated or {
        "names": list(dimension_names(info, form.ACTION_KEY)),
        "control_hz": info["fps"],
    }
    check_action_spec(fields, action_spec, owner)
    if proprio_names is not None:
        check_state(dimension_names(info, form.STATE_KEY), proprio_names, owner)
    return describe_missing_spec(fields, action_spec, owner)


def select_rows(
    columns: Columns, failures: Literal["keep", "drop"], owner: str
) -> tuple[Int[np.ndarray, "N"], str | None]:
    """The rows to train on, and a note about episodes marked as failed; None without any."""
    rows = np.arange(len(columns.actions))
    num_failed = len(np.unique(columns.episode_index[~columns.success]))
    if not num_failed:
        return rows, None
    num_episodes = len(np.unique(columns.episode_index))
    note = f"{num_failed} of {num_episodes} episodes of {owner} are marked as failures"
    if failures == "keep":
        return rows, f"{note} and are imitated too; data.failures=drop leaves them out"
    if not columns.success.any():
        raise ValueError(
            f"{note}: data.failures=drop leaves nothing to imitate, set it to keep or use other "
            "data"
        )
    return rows[columns.success], f"{note} and are left out (data.failures=drop)"


def check_finite_columns(
    info: JsonMapping, columns: Columns, rows: Int[np.ndarray, "N"], owner: str
) -> None:
    """Refuse NaN and infinity in state and actions: one such number becomes a command.

    Raises:
        ValueError: with feature, dimension, episode and frame of the first.
    """
    for key, values in ((form.ACTION_KEY, columns.actions), (form.STATE_KEY, columns.proprio)):
        bad = ~np.isfinite(values[rows])
        if bad.any():
            at, dimension = np.argwhere(bad)[0]
            episode = int(columns.episode_index[rows[at]])
            frame = int(rows[at] - np.flatnonzero(columns.episode_index == episode)[0])
            raise ValueError(
                f"{key}: {dimension_names(info, key)[dimension]} (dimension {dimension}) is "
                f"{values[rows[at], dimension]} in "
                f"frame {frame} of episode {episode} of {owner} ({int(bad.sum())} such numbers, "
                "in episodes "
                f"{np.unique(columns.episode_index[rows[bad.any(1)]]).tolist()}): repair it, or "
                "delete these episodes "
                "with LeRobot's lerobot-edit-dataset"
            )


def find_empty_tasks(
    columns: Columns, rows: Int[np.ndarray, "N"], instructions: Mapping[int, str]
) -> str | None:
    """A note about frames whose instruction is empty; None where there are none."""
    blank = [index for index, text in instructions.items() if not text.strip()]
    count = int(np.isin(columns.task_index[rows], blank).sum())
    return (
        f"{count} of {len(rows)} frames have an empty instruction: the policy gets no text in them"
        if count
        else None
    )


def describe_padding(sizes: Mapping[str, tuple[int, int]]) -> str | None:
    """A note about the rule that makes images square; None where all are square already."""
    not_square = [
        f"{camera} {height} x {width}"
        for camera, (height, width) in sizes.items()
        if height != width
    ]
    if not not_square:
        return None
    return (
        f"pictures are not square ({', '.join(not_square)}): each is shrunk as a whole and "
        "padded with "
        f"black ({RESIZE}); an "
        "environment must render the same shape (sim=gym: sim.make.width and sim.make.height)"
    )
