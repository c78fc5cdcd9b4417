"""Where the simulator and the framework meet: sim's environments, scenes and experts behind vla's
protocols."""

from __future__ import annotations

from typing import Any

from scripts.scenes import QUESTION_WEIGHTS, Scenes
from scripts.world_environments import WorldEnvironments
from sim import CAMERAS
from sim.spec import DEFAULT_ACTION_SPEC
from vla.data.collect import PROPRIO_NAMES
from vla.data.meaning import WITHOUT_SIMULATOR


class Simulation(WorldEnvironments):
    """A task in MuJoCo as a `vla.stages.world.World`; what it means is known before MuJoCo
    loads."""

    cameras = CAMERAS
    proprio_names = PROPRIO_NAMES

    def __init__(self, settings: Any):
        super().__init__(settings)
        unknown = [camera for camera in settings.cameras if camera not in CAMERAS]
        if unknown:
            raise ValueError(
                f"sim.cameras={list(settings.cameras)} names {unknown[0]}, the simulator draws {', '.join(CAMERAS)}: "
                f"choose from these; {WITHOUT_SIMULATOR}"
            )

    def _make(self, num_envs: int, render_every_step: bool) -> Any:
        from sim import make_vector

        s = self.settings
        return make_vector(
            task=s.task,
            robot=s.robot,
            num_envs=num_envs,
            cameras=s.cameras,
            image_size=s.image_size,
            max_steps=s.max_steps,
            renderer=s.renderer,
            num_threads=s.num_threads,
            reward=s.reward,
            randomize=s.randomization,
            num_distractors=s.num_distractors,
            perturbation=s.perturbation,
            render_every_step=render_every_step,
        )

    @property
    def action_spec(self) -> dict[str, Any]:
        return DEFAULT_ACTION_SPEC.to_dict()

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

    return tuple(PERTURBATIONS)
