"""The world that settings ask for: our own simulator, or anything of gymnasium's."""

from __future__ import annotations

from typing import Any


def world_of(settings: Any) -> Any:
    """What the section `sim` describes, as a `vla.stages.world.World`."""
    from scripts.gymnasium_world import GymnasiumWorld
    from scripts.simulation import Simulation

    return GymnasiumWorld(settings) if hasattr(settings, "id") else Simulation(settings)
