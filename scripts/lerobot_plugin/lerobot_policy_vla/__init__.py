"""Imported by LeRobot's commands: from then on they know `policy.type=vla` and `env.type=vla`."""

from lerobot_policy_vla.simulated import VlaEnv
from vla.interop.lerobot.configuration_vla import VlaConfig
from vla.interop.lerobot.refusal import show_refusals_in_one_line

__all__ = ["VlaConfig", "VlaEnv"]
show_refusals_in_one_line()
