"""Repairs for packages that were written for an older MuJoCo; the physics stays as it is.

Since 3.12 a numpy integer is not equal to an enum of MuJoCo's, so `joint_type in
(mjtJoint.mjJNT_HINGE, ...)` is False (gymnasium-robotics, Meta-World). Since 3.17 a row of
`eq_data` has 12 numbers instead of 11 (Meta-World).
"""

from __future__ import annotations

from typing import Any, SupportsInt

import numpy as np


def accept_integers() -> None:
    """Make MuJoCo's enums equal to the integers they stand for, numpy's among them."""
    import mujoco

    kinds = {
        type(mujoco.mjtJoint.mjJNT_FREE),
        *(k for n, k in vars(mujoco).items() if n.startswith("mjt")),
    }
    for kind in kinds:
        if isinstance(kind, type) and hasattr(kind, "__members__"):
            kind.__eq__ = _equal  # type: ignore[method-assign,assignment]
            kind.__hash__ = _hash  # type: ignore[method-assign,assignment]


def _equal(self: SupportsInt, other: SupportsInt) -> bool:
    try:
        return int(self) == int(other)
    except (TypeError, ValueError):
        return False


def _hash(self: SupportsInt) -> int:
    return hash(int(self))


def fit_metaworld() -> None:
    """Make Meta-World reset the first 11 numbers of its welds' rows only."""
    import mujoco
    from metaworld.sawyer_xyz_env import SawyerMocapBase

    weld = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0])

    def reset_mocap_welds(self: Any) -> None:
        rows = np.flatnonzero(self.model.eq_type == int(mujoco.mjtEq.mjEQ_WELD))
        self.model.eq_data[rows, : len(weld)] = weld

    SawyerMocapBase.reset_mocap_welds = reset_mocap_welds
