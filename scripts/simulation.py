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
        """Rendered scenes by seed, as many at once as there are environments."""
        from sim.task import SimObservation

        step = self.environment.num_envs
        parts = [self.environment.sample_scenes(seeds[at : at + step]) for at in range(0, len(seeds), step)]
        seen = [part for part, _ in parts]
        joined = SimObservation(
            images={name: np.concatenate([s.images[name] for s in seen]) for name in seen[0].images},
            proprio=np.concatenate([s.proprio for s in seen]),
            instruction=[text for s in seen for text in s.instruction],
        )
        return joined, [fact for _, facts in parts for fact in facts]

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


class Simulation:
    """A task in MuJoCo as a `vla.stages.world.World`."""

    def __init__(self, settings: Any):
        self.settings = settings
        self._environment: Any = None
        self._recorder: Any = None

    def _make(self, num_envs: int, render_every_step: bool) -> Any:
        from sim import make_vector

        s = self.settings
        return make_vector(
            task=s.task, robot=s.robot, num_envs=num_envs, cameras=s.cameras, image_size=s.image_size,
            max_steps=s.max_steps, renderer=s.renderer, num_threads=s.num_threads, reward=s.reward,
            randomize=s.randomization, num_distractors=s.num_distractors, render_every_step=render_every_step,
        )  # fmt: skip

    def environment(self) -> Any:
        if self._environment is None:
            self._environment = self._make(self.settings.num_envs, render_every_step=False)
        return self._environment

    def recorder(self, num_envs: int) -> Any:
        if self._recorder is None or self._recorder.num_envs < num_envs:
            self._recorder = self._make(num_envs, render_every_step=True)
        return self._recorder

    @property
    def action_spec(self) -> dict[str, Any]:
        return self.environment().action_spec.to_dict()

    @property
    def proprio_size(self) -> int:
        from vla.data.collect import PROPRIO_NAMES

        return len(PROPRIO_NAMES)

    def scenes(self) -> Scenes:
        return Scenes(self.environment(), QUESTION_WEIGHTS)

    def expert(self, environment: Any, seed: int, burst_probability: float) -> Any:
        from sim.experts import Expert

        return Expert(environment, seed=seed, burst_probability=burst_probability)

    def texts(self) -> list[str]:
        from sim.questions import all_texts

        return all_texts()

    def kind_of(self, question: str) -> str:
        from sim.questions import kind_of

        return kind_of(question)
