"""Imported by LeRobot's commands: from then on they know `policy.type=vla` and `env.type=vla`."""

from lerobot_policy_vla.simulated import VlaEnv
from vla.interop.lerobot.configuration_vla import VlaConfig
from vla.interop.lerobot.refusal import install_one_line_refusals

__all__ = ["VlaConfig", "VlaEnv"]
install_one_line_refusals()
