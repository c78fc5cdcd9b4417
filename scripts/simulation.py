"""Where the simulator and the framework meet: sim's environments, scenes and experts behind vla's protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

QUESTION_WEIGHTS = {
    "where_from_gripper": 4.0,
    "where_on_table": 1.0,
    "turned": 1.5,
    "held": 1.0,
    "what_is_held": 0.5,
    "color_of": 0.5,
    "is_there": 0.5,
    "how_many": 0.5,
    "done": 0.5,
}


class Scenes:
    """Rendered random scenes and questions about them (`vla.stages.grounding.SceneSource`)."""

    def __init__(self, environment: Any, weights: dict[str, float]):
        self.environment, self.weights = environment, weights

    def scenes(self, seeds: Sequence[int]) -> tuple[Any, Sequence[Any]]:
        return self.environment.sample_scenes(seeds)

    def ask(self, facts: Any, rng: np.random.Generator, count: int) -> Sequence[Any]:
        from sim.questions import ask

        return ask(facts, rng, count, self.weights)

    @property
    def sighting_names(self) -> Sequence[str]:
        from sim.questions import SIGHTING_KINDS

        return SIGHTING_KINDS

    def sightings(self, facts: Any) -> dict[str, Sequence[Any]]:
        from sim.questions import sightings

        return {camera: sightings(facts, camera) for camera in self.environment.cameras}
