"""Rendered scenes and questions about them, from the simulator behind vla's protocol for
grounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
"""How often each kind of question is asked."""


class Scenes:
    """Moments of disturbed episodes of an environment (`vla.stages.grounding.SceneSource`)."""

    def __init__(self, environment: Any, weights: dict[str, float]):
        self.environment, self.weights = environment, weights

    def scenes(self, seeds: Sequence[int]) -> tuple[Any, Sequence[Any]]:
        """Rendered scenes by seed, as many at once as there are environments."""
        import numpy as np

        from sim.experts.perturbed_states import sample_perturbed_states
        from sim.task import SimObservation

        step = self.environment.num_envs
        parts = [
            sample_perturbed_states(self.environment, seeds[at : at + step])
            for at in range(0, len(seeds), step)
        ]
        seen = [part for part, _ in parts]
        joined = SimObservation(
            images={
                name: np.concatenate([s.images[name] for s in seen]) for name in seen[0].images
            },
            proprio=np.concatenate([s.proprio for s in seen]),
            instruction=[text for s in seen for text in s.instruction],
        )
        return joined, [fact for _, facts in parts for fact in facts]

    def ask(self, facts: Any, rng: Any, count: int) -> Sequence[Any]:
        from sim.questions import ask
        from vla.data.questions import Question

        return [Question(*question) for question in ask(facts, rng, count, self.weights)]

    @property
    def sighting_names(self) -> Sequence[str]:
        from sim.questions import SIGHTING_KINDS

        return SIGHTING_KINDS

    @property
    def num_plan_numbers(self) -> int:
        from sim.questions import PLAN_NUMBERS

        return len(PLAN_NUMBERS)

    def plan(self, facts: Any, rng: Any) -> Any:
        from sim.questions import plan

        return plan(facts, rng)

    def sightings(self, facts: Any) -> dict[str, Sequence[Any]]:
        from sim.questions import sightings

        return {camera: sightings(facts, camera) for camera in self.environment.cameras}
