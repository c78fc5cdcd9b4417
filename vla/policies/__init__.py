"""Policies of robots and of text. `POLICIES` names the settings of every kind of robot policy."""

POLICIES = {
    "token": "vla.policies.token:TokenSettings",
    "fast": "vla.policies.fast:FastSettings",
    "flow": "vla.policies.flow:FlowSettings",
    "diffusion": "vla.policies.diffusion:DiffusionSettings",
    "regression": "vla.policies.regression:RegressionSettings",
}
"""Settings dataclasses (`head.PolicySettings`) by the name that `policy=NAME` takes. Installed
packages add theirs through the entry-point group `vla.policies`."""
POLICY_GROUP = "vla.policies"
