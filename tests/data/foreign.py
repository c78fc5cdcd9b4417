"""Small LeRobotDatasets v3 made with LeRobot's own API: odd, but legal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

OURS = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
STATE = ("x", "y", "z", "roll", "pitch", "yaw", "gripper_opening")
Frame = dict[str, Any]


def foreign(
    folder: Path,
    *,
    lengths: Sequence[int] = (3, 4),
    size: tuple[int, int] = (8, 8),
    cameras: Sequence[str] = ("front", "wrist"),
    actions: Any = OURS,
    state: Any = STATE,
    dtype: str = "float32",
    fps: int = 20,
    tasks: Sequence[str] = ("lift the cube", "push the cube"),
    extra: dict[str, Any] | None = None,
    change: Callable[[Frame, int, int], None] = lambda frame, episode, step: None,
) -> Path:
    """A dataset whose pictures show a white square at the left; `change` may alter every frame
    before it is added."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    counts = {"action": count(actions), "observation.state": count(state)}
    features: dict[str, Any] = {
        f"observation.images.{camera}": {
            "dtype": "image",
            "shape": (*size, 3),
            "names": ["height", "width", "channels"],
        }
        for camera in cameras
    }
    for key, names in (("action", actions), ("observation.state", state)):
        if counts[key]:
            features[key] = {
                "dtype": dtype,
                "shape": (counts[key],),
                "names": names if isinstance(names, dict) else list(names),
            }
    features |= extra or {}
    dataset = LeRobotDataset.create(
        "local/foreign", fps=fps, features=features, root=folder, use_videos=False
    )
    random = np.random.default_rng(0)
    for episode, length in enumerate(lengths):
        for step in range(length):
            image = np.zeros((*size, 3), np.uint8)
            image[:, : size[1] // 4] = 255
            frame: Frame = {f"observation.images.{camera}": image for camera in cameras}
            for key, number in counts.items():
                if number:
                    frame[key] = random.uniform(-0.03, 0.03, number).astype(dtype)
            frame["task"] = tasks[episode % len(tasks)]
            change(frame, episode, step)
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    return folder


def count(names: Any) -> int:
    return sum(len(part) for part in names.values()) if isinstance(names, dict) else len(names)


def put(
    key: str, dimension: int, value: float, episode: int, step: int
) -> Callable[[Frame, int, int], None]:
    """Changes one number of one frame."""

    def change(frame: Frame, e: int, t: int) -> None:
        if (e, t) == (episode, step):
            frame[key][dimension] = value

    return change
