"""The names of cameras and robots, and the error of a name that does not exist."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from typing import Literal, get_args

CAMERAS = ("front", "wrist")
"""The cameras of every scene. "front" is fixed in the world: `sim.scenes.tabletop` holds its pose.
"wrist" is fixed to the hand: `sim.robots.gripper` holds its pose."""
RobotName = Literal["panda", "gantry"]
ROBOTS: tuple[str, ...] = get_args(RobotName)


def check_choice(setting: str, value: str, known: Collection[str]) -> None:
    """Raise a ValueError with the setting, its value and the nearest known name."""
    if value in known:
        return
    nearest = get_close_matches(str(value), list(known), n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ValueError(f"{setting}={value!r} is unknown; {hint}choose one of {', '.join(known)}")
