"""Rendered scenes of a task, and questions about them for grounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.random import Generator

    from sim.questions import DetectedObject, Plan, Question
    from sim.task import SceneFacts, SimObservation
    from sim.vector import VectorEnvironment

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


class TabletopScenes:
    """Perturbed states of an environment, with questions; `weights` per kind of question."""

    def __init__(self, environment: VectorEnvironment, weights: Mapping[str, float]):
        self.environment = environment
        self.weights = weights

    def scenes(self, seeds: Sequence[int]) -> tuple[SimObservation, Sequence[SceneFacts]]:
        """Rendered scenes by seed, as many at once as there are environments."""
        import numpy as np

        from sim.experts.perturbed_states import sample_perturbed_states
        from sim.task import SimObservation

        step = self.environment.num_envs
        parts = [
            sample_perturbed_states(self.environment, seeds[at : at + step])
            for at in range(0, len(seeds), step)
        ]
        observations = [part for part, _ in parts]
        joined = SimObservation(
            images={
                name: np.concatenate([s.images[name] for s in observations])
                for name in observations[0].images
            },
            proprio=np.concatenate([s.proprio for s in observations]),
            instruction=[text for s in observations for text in s.instruction],
        )
        return joined, [fact for _, facts in parts for fact in facts]

    def sample_questions(self, facts: SceneFacts, rng: Generator, count: int) -> Sequence[Question]:
        from sim.questions import ask

        return ask(facts, rng, count, dict(self.weights))

    @property
    def object_names(self) -> Sequence[str]:
        from sim.questions import OBJECT_KINDS

        return OBJECT_KINDS

    @property
    def num_plan_numbers(self) -> int:
        from sim.questions import PLAN_NUMBERS

        return len(PLAN_NUMBERS)

    def sample_instruction(self, facts: SceneFacts, rng: Generator) -> Plan:
        from sim.questions import plan

        return plan(facts, rng)

    def detected_objects(self, facts: SceneFacts) -> dict[str, Sequence[DetectedObject]]:
        from sim.questions import detected_objects

        return {camera: detected_objects(facts, camera) for camera in self.environment.cameras}
