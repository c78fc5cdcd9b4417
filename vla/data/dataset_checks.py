"""What of a dataset can be learned from: its cameras, the episodes that count, numbers that are
finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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


@dataclass(frozen=True)
class TrainableRows:
    """The numbers of a dataset, the rows to learn from, the instructions by task index, and what to
    know of them."""

    columns: Columns
    rows: Int[np.ndarray, "N"]
    instructions: Mapping[int, str]
    notes: tuple[str, ...]


def read_trainable_rows(
    folder: Path, info: Mapping[str, Any], failures: Literal["keep", "drop"]
) -> TrainableRows:
    """Read everything but pictures.

    Raises:
        ValueError: numbers that are NaN or infinite, tasks without instruction, nothing but failures to leave out.
    """
    columns = read_columns(folder, info)
    rows, told = select_rows(columns, failures, f"the dataset {folder}")
    check_finite_columns(info, columns, rows, f"the dataset {folder}")
    instructions = read_tasks(folder, columns.task_index)
    notes = (told, find_empty_tasks(columns, rows, instructions))
    return TrainableRows(columns, rows, instructions, tuple(note for note in notes if note))


def select_cameras(
    folder: Path,
    info: Mapping[str, Any],
    wanted: Sequence[str] | None,
    drawable: Sequence[str] | None,
) -> dict[str, str]:
    """Camera name -> feature key, in the wanted order.

    Raises ValueError where one is not there, with what can be done about it.
    """
    keys = find_cameras(info)
    missing = [camera for camera in wanted or () if camera not in keys]
    if missing:
        shared = [camera for camera in keys if drawable is None or camera in drawable]
        if shared:
            remedy = f"set sim.cameras=[{','.join(shared)}], and model.checkpoint=null where that has other cameras"
        elif keys:
            remedy = f"the simulator draws {', '.join(drawable or ())} and no others; {WITHOUT_SIMULATOR}"
        else:
            remedy = "record it again with cameras: every policy looks at pictures"
        raise ValueError(
            f"cameras: {', '.join(missing)} wanted, but the dataset {folder} has "
            f"{', '.join(keys) or 'none'}; {remedy}"
        )
    return {camera: keys[camera] for camera in (keys if wanted is None else wanted)}


def check_dataset_spec(
    info: Mapping[str, Any],
    stated: Mapping[str, Any] | None,
    action_spec: Mapping[str, Any],
    proprio_names: Sequence[str] | None,
    owner: str,
) -> str | None:
    """Hold what a dataset says of its actions and state against what is expected; a sentence about
    what it leaves open.

    Raises ValueError naming the field that differs.
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
    """The rows to learn from, and a sentence about the episodes that are marked as failed, where
    there are some."""
    every = np.arange(len(columns.actions))
    failed = len(np.unique(columns.episode_index[~columns.success]))
    if not failed:
        return every, None
    told = f"{failed} of {len(np.unique(columns.episode_index))} episodes of {owner} are marked as failures"
    if failures == "keep":
        return every, f"{told} and are imitated too; data.failures=drop leaves them out"
    if not columns.success.any():
        raise ValueError(
            f"{told}: data.failures=drop leaves nothing to imitate, set it to keep or use other "
            "data"
        )
    return every[columns.success], f"{told} and are left out (data.failures=drop)"


def check_finite_columns(
    info: Mapping[str, Any], columns: Columns, rows: Int[np.ndarray, "N"], owner: str
) -> None:
    """Refuse state and actions that are NaN or infinite: one such number becomes a command.

    Raises:
        ValueError: naming feature, dimension, episode and frame of the first.
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
    blank = [index for index, text in instructions.items() if not text.strip()]
    count = int(np.isin(columns.task_index[rows], blank).sum())
    return (
        f"{count} of {len(rows)} frames have an empty instruction: the policy is told nothing in "
        "them"
        if count
        else None
    )


def describe_padding(sizes: Mapping[str, tuple[int, int]]) -> str | None:
    """Says by which rule pictures become square, where some are not."""
    odd = [
        f"{camera} {height} x {width}"
        for camera, (height, width) in sizes.items()
        if height != width
    ]
    if not odd:
        return None
    return (
        f"pictures are not square ({', '.join(odd)}): each is shrunk as a whole and padded with "
        f"black ({RESIZE}); an "
        "environment must draw the same shape (sim=gym: sim.make.width and sim.make.height)"
    )
