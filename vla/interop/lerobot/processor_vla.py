"""LeRobot's processors around our policies: names, batches and devices.

The policy normalizes by itself.
"""

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors

from vla.interop.lerobot.configuration_vla import VlaConfig


def make_vla_pre_post_processors(
    config: VlaConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """Make the processors; LeRobot finds this function by its name.

    Statistics are left out, because every normalization is the identity.
    """
    return make_default_pre_post_processors(config, None)
