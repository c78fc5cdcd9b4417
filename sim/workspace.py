"""The workspace of the hand: where it may be sent, how far its fingers open, how often it is told.

Light to import: tasks and settings read these numbers before MuJoCo loads.
"""

from __future__ import annotations

import numpy as np

CENTER = (0.5, 0.0)
"""Middle of the workspace on the table: x, y (metres, robot base frame)."""
POSE_LOW = np.array([CENTER[0] - 0.17, CENTER[1] - 0.17, 0.012, -0.3, -0.3, -1.7])
"""Lower limits of the commanded x y z roll pitch yaw; z keeps the fingertips off the table."""
POSE_HIGH = np.array([CENTER[0] + 0.17, CENTER[1] + 0.17, 0.30, 0.3, 0.3, 1.7])
"""Upper limits of the commanded x y z roll pitch yaw."""
MAX_OPENING = 0.08
"""Largest distance between the fingers, metres."""
CONTROL_SECONDS = 0.05
"""Duration of a control step, seconds."""
