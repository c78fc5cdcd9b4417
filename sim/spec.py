"""The meaning of an action: names, units, frame, limits and rate of its dimensions.

It is written beside every dataset and policy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CLOSE = 1.0
OPEN = -1.0
"""Values of the gripper's dimension."""


@dataclass(frozen=True)
class ActionSpec:
    """The meaning of one control step's action of `A` dimensions.

    Attributes:
        names: one per dimension.
        units: "m", "rad" or "sign" per dimension.
        kinds: "delta" (added to the commanded value) or "absolute" per dimension.
        low, high: the limits that the environment clips to, in the dimension's unit.
        frame: the frame that translations and rotations are expressed in.
        rotation: how roll, pitch and yaw make a rotation: R = Rz(yaw) Ry(pitch) Rx(roll).
        control_hz: control steps per second.
        gripper_sign: what a positive gripper value does, "close" or "open".
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    kinds: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    frame: str
    rotation: str
    control_hz: float
    gripper_sign: str

    def __post_init__(self) -> None:
        sizes = {len(self.names), len(self.units), len(self.kinds), len(self.low), len(self.high)}
        if len(sizes) != 1:
            raise ValueError(
                "names, units, kinds, low and high must be equally long, got lengths "
                f"{sorted(sizes)}"
            )

    @property
    def size(self) -> int:
        """Number of action dimensions A."""
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML."""
        return asdict(self)

    def checked_chunks(self, actions: np.ndarray, ids: np.ndarray, max_steps: int) -> np.ndarray:
        """The actions [n, H, A] for the environments `ids`, as float32.

        Raises:
            ValueError: the shape is another, H does not divide the episode, or an action is NaN or
                infinite.
        """
        actions = np.asarray(actions, dtype=np.float32)
        if actions.ndim != 3 or actions.shape[0] != len(ids) or actions.shape[2] != self.size:
            raise ValueError(
                f"actions must be [{len(ids)}, H, {self.size}] (environments, chunk, "
                f"dimensions), got {actions.shape}"
            )
        if actions.shape[1] == 0 or max_steps % actions.shape[1]:
            raise ValueError(
                f"the chunk of actions ({actions.shape[1]}) must divide sim.max_steps "
                f"({max_steps}); "
                "change one so that it does"
            )
        bad = ~np.isfinite(actions).all(axis=(1, 2))
        if bad.any():
            raise ValueError(
                f"actions of environments {ids[bad].tolist()} are NaN or infinite; check the "
                "policy's output"
            )
        return actions


DEFAULT_ACTION_SPEC = ActionSpec(
    names=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
    units=("m", "m", "m", "rad", "rad", "rad", "sign"),
    kinds=("delta",) * 6 + ("absolute",),
    low=(-0.05, -0.05, -0.05, -0.2, -0.2, -0.2, OPEN),
    high=(0.05, 0.05, 0.05, 0.2, 0.2, 0.2, CLOSE),
    frame="robot base",
    rotation=(
        "extrinsic xyz (roll, pitch, yaw) of the commanded hand, "
        "neutral = fingers pointing straight down"
    ),
    control_hz=20.0,
    gripper_sign="close",
)
