"""Imported by LeRobot's commands: from then on they know `policy.type=vla` and `env.type=vla`."""

from lerobot_policy_vla.simulated import VlaEnv
from vla.lerobot.configuration_vla import VlaConfig

__all__ = ["VlaConfig", "VlaEnv"]
