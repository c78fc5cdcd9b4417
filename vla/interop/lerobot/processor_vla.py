"""LeRobot's pipelines around our policies: names, rows and devices; nothing is normalised, the
policy does that."""

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors

from vla.interop.lerobot.configuration_vla import VlaConfig


def make_vla_pre_post_processors(
    config: VlaConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """Found by LeRobot by its name. Statistics are left out: every mapping is the identity."""
    return make_default_pre_post_processors(config, None)
