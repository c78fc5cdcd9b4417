"""Policies: each draws actions and scores the draws it made.

`POLICIES` is the only list of the kinds of robot policies. An installed package adds one through an
entry point of the group `vla.policies`: a settings dataclass (`vla.policies.head.PolicySettings`).
"""

from __future__ import annotations

from vla.plugins import extend_table

GROUP = "vla.policies"
"""Entry points of users' policies."""
POLICIES = {
    "token": "vla.policies.token:TokenSettings",
    "fast": "vla.policies.fast:FastSettings",
    "flow": "vla.policies.flow:FlowSettings",
    "diffusion": "vla.policies.diffusion:DiffusionSettings",
    "regression": "vla.policies.regression:RegressionSettings",
}


LEROBOT = "lerobot"
FOREIGN_POLICIES = {LEROBOT: "vla.policies.lerobot:LeRobotSettings"}
"""Kinds of policies that are not on our own model; `policy.path` alone makes them."""


def policy_table() -> dict[str, str]:
    """{name: "module:Settings"} of our policy kinds and of installed packages'."""
    return extend_table(POLICIES, GROUP)
