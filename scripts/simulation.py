"""Where the simulator and the framework meet: sim's environments, scenes and experts behind vla's protocols."""

from __future__ import annotations

from typing import Any

from scripts.scenes import QUESTION_WEIGHTS, Scenes


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
            randomize=s.randomization, num_distractors=s.num_distractors, perturbation=s.perturbation,
            render_every_step=render_every_step,
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

        return all_texts(self.settings.tasks)

    def kind_of(self, question: str) -> str:
        from sim.questions import kind_of

        return kind_of(question)

    def task_of(self, instruction: str) -> str:
        from sim.scenes.objects import COLORS

        return " ".join(word for word in instruction.split() if word not in COLORS)


def perturbations() -> tuple[str, ...]:
    """What can be changed about evaluation starts, by name; "none" among them."""
    from sim import PERTURBATIONS

    return PERTURBATIONS
